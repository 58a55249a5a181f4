//! What an expression is worth where its letters are complex numbers, drawn from their names.

use super::{
    complex::{Complex, ONE},
    parse::Expression,
};

/// Relative distance within which values are equal.
const TOLERANCE: f64 = 1e-9;

/// The value of an expression at one of the points.
pub fn at(expression: &Expression, point: u64) -> Complex {
    let value = |inner: &Expression| at(inner, point);
    match expression {
        Expression::Number(number) => Complex::real(*number),
        Expression::Symbol(name) => drawn(name, point),
        Expression::Infinity => Complex::real(f64::INFINITY),
        Expression::Add(first, second) => value(first) + value(second),
        Expression::Mul(first, second) => value(first) * value(second),
        Expression::Div(first, second) => value(first) / value(second),
        Expression::Neg(inner) => -value(inner),
        Expression::Pow(base, exponent) => value(base).pow(value(exponent)),
        Expression::Call(name, arguments) => {
            let arguments: Vec<Complex> = arguments.iter().map(value).collect();
            call(name, &arguments, point)
        }
    }
}

/// Whether two values are numbers and the same.
pub fn are_close(first: Complex, second: Complex) -> bool {
    let scale = first.norm().max(second.norm()).max(1.0);
    scale.is_finite() && (first - second).norm() <= TOLERANCE * scale
}

/// A number for a name: the same for the same name and point.
fn drawn(name: &str, point: u64) -> Complex {
    let hash = blake3::hash(format!("{point} {name}").as_bytes());
    let part = |range: std::ops::Range<usize>| {
        let bits = hash.as_bytes()[range].iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        0.3 + 1.4 * f64::from(bits) / f64::from(u32::MAX)
    };
    // A negative imaginary part as often as a positive one, so that another branch of a root shows.
    let sign = if hash.as_bytes()[8] & 1 == 0 { 1.0 } else { -1.0 };
    Complex { re: if hash.as_bytes()[9] & 1 == 0 { part(0..4) } else { -part(0..4) }, im: sign * part(4..8) }
}

fn call(name: &str, arguments: &[Complex], point: u64) -> Complex {
    let Some(&x) = arguments.first() else { return Complex::real(f64::NAN) };
    match (name, arguments.get(1)) {
        ("abs", _) => Complex::real(x.norm()),
        ("conjugate", _) => x.conj(),
        ("floor", _) => Complex { re: x.re.floor(), im: x.im.floor() },
        ("ceil", _) => Complex { re: x.re.ceil(), im: x.im.ceil() },
        ("exp", _) => x.exp(),
        ("log", Some(base)) => x.ln() / base.ln(),
        ("log" | "lg", _) => x.ln() / Complex::real(std::f64::consts::LN_10),
        ("ln", _) => x.ln(),
        ("sin", _) => x.sin(),
        ("cos", _) => x.cos(),
        ("tan", _) => x.sin() / x.cos(),
        ("csc", _) => ONE / x.sin(),
        ("sec", _) => ONE / x.cos(),
        ("cot", _) => x.cos() / x.sin(),
        ("arcsin", _) => x.asin(),
        ("arccos", _) => x.acos(),
        ("arctan", _) => x.atan(),
        ("arccsc", _) => (ONE / x).asin(),
        ("arcsec", _) => (ONE / x).acos(),
        ("arccot", _) => (ONE / x).atan(),
        ("sinh", _) => x.sinh(),
        ("cosh", _) => x.cosh(),
        ("tanh", _) => x.sinh() / x.cosh(),
        ("arsinh" | "arcsinh", _) => x.asinh(),
        ("arcosh" | "arccosh", _) => x.acosh(),
        ("artanh" | "arctanh", _) => x.atanh(),
        ("factorial", _) if is_natural(x) => Complex::real(falling(x.re, x.re)),
        ("binomial", Some(&k)) if is_natural(x) && is_natural(k) => {
            Complex::real(falling(x.re, k.re) / falling(k.re, k.re))
        }
        _ => unknown(name, arguments, point),
    }
}

fn is_natural(x: Complex) -> bool {
    x.im == 0.0 && x.re >= 0.0 && x.re <= 170.0 && x.re == x.re.floor()
}

/// `n (n - 1) …` with `k` factors.
fn falling(n: f64, k: f64) -> f64 {
    (0..k as u64).map(|i| n - i as f64).product()
}

/// A function of which nothing is known: equal for equal arguments, and for no others.
fn unknown(name: &str, arguments: &[Complex], point: u64) -> Complex {
    let terms = arguments.iter().enumerate().map(|(index, x)| *x * drawn(&format!("{name} {index}"), point));
    terms.fold(drawn(name, point), |sum, term| sum + term).sin()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_no_numbers_are_never_close() {
        let infinity = Complex::real(f64::INFINITY);
        assert!(!are_close(infinity, infinity));
        assert!(!are_close(Complex::real(f64::NAN), Complex::real(f64::NAN)));
        assert!(are_close(Complex::real(1e12), Complex::real(1e12 + 1e-3)));
    }

    #[test]
    fn unknown_functions_tell_their_arguments_apart() {
        let (x, y) = (drawn("x", 0), drawn("y", 0));
        assert!(are_close(unknown("f()", &[x], 0), unknown("f()", &[x], 0)));
        assert!(!are_close(unknown("f()", &[x], 0), unknown("f()", &[y], 0)));
        assert!(!are_close(unknown("f()", &[x], 0), unknown("g()", &[x], 0)));
    }
}
