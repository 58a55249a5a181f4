//! Complex numbers with the functions that answers are written in; principal values.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// A complex number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Complex {
    /// Real part.
    pub re: f64,
    /// Imaginary part.
    pub im: f64,
}

/// The real unit.
pub const ONE: Complex = Complex { re: 1.0, im: 0.0 };
/// The imaginary unit.
const I: Complex = Complex { re: 0.0, im: 1.0 };

impl Complex {
    /// A real number.
    pub fn real(re: f64) -> Self {
        Self { re, im: 0.0 }
    }

    /// The absolute value.
    pub fn norm(self) -> f64 {
        self.re.hypot(self.im)
    }

    /// The conjugate.
    pub fn conj(self) -> Self {
        Self { re: self.re, im: -self.im }
    }

    /// The exponential.
    pub fn exp(self) -> Self {
        let scale = self.re.exp();
        Self { re: scale * self.im.cos(), im: scale * self.im.sin() }
    }

    /// The natural logarithm.
    pub fn ln(self) -> Self {
        Self { re: self.norm().ln(), im: self.im.atan2(self.re) }
    }

    /// A power. Whole exponents are multiplied out, so that whole numbers stay whole.
    pub fn pow(self, exponent: Self) -> Self {
        let whole = exponent.re.round();
        if exponent.im == 0.0 && exponent.re == whole && whole.abs() <= 64.0 {
            let power = (0..whole.abs() as u32).fold(ONE, |power, _| power * self);
            return if whole < 0.0 { ONE / power } else { power };
        }
        if self.re == 0.0 && self.im == 0.0 { self } else { (exponent * self.ln()).exp() }
    }

    fn sqrt(self) -> Self {
        self.pow(Self::real(0.5))
    }

    /// The hyperbolic sine.
    pub fn sinh(self) -> Self {
        (self.exp() - (-self).exp()) / Self::real(2.0)
    }

    /// The hyperbolic cosine.
    pub fn cosh(self) -> Self {
        (self.exp() + (-self).exp()) / Self::real(2.0)
    }

    /// The sine.
    pub fn sin(self) -> Self {
        -I * (I * self).sinh()
    }

    /// The cosine.
    pub fn cos(self) -> Self {
        (I * self).cosh()
    }

    /// The inverse of the hyperbolic sine.
    pub fn asinh(self) -> Self {
        (self + (self * self + ONE).sqrt()).ln()
    }

    /// The inverse of the hyperbolic cosine.
    pub fn acosh(self) -> Self {
        (self + (self + ONE).sqrt() * (self - ONE).sqrt()).ln()
    }

    /// The inverse of the hyperbolic tangent.
    pub fn atanh(self) -> Self {
        ((ONE + self).ln() - (ONE - self).ln()) / Self::real(2.0)
    }

    /// The inverse of the sine.
    pub fn asin(self) -> Self {
        -I * (I * self).asinh()
    }

    /// The inverse of the cosine.
    pub fn acos(self) -> Self {
        Self::real(std::f64::consts::FRAC_PI_2) - self.asin()
    }

    /// The inverse of the tangent.
    pub fn atan(self) -> Self {
        -I * (I * self).atanh()
    }
}

impl Add for Complex {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }
}

impl Sub for Complex {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Neg for Complex {
    type Output = Self;

    fn neg(self) -> Self {
        Self { re: -self.re, im: -self.im }
    }
}

impl Mul for Complex {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }
}

impl Div for Complex {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        let scale = other.re * other.re + other.im * other.im;
        let product = self * other.conj();
        Self { re: product.re / scale, im: product.im / scale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_and_their_inverses_meet() {
        let z = Complex { re: 0.4, im: -0.7 };
        let close = |a: Complex, b: Complex| (a - b).norm() < 1e-12;
        assert!(close(z.asin().sin(), z) && close(z.acos().cos(), z));
        assert!(close(z.asinh().sinh(), z) && close(z.acosh().cosh(), z));
        let (sine, cosine) = (z.atan().sin(), z.atan().cos());
        assert!(close(sine / cosine, z) && close(z.ln().exp(), z));
        assert!(close(z.sin() * z.sin() + z.cos() * z.cos(), ONE));
        assert!(close(z.pow(Complex::real(-2.0)) * z * z, ONE));
        // e^{i pi} = -1.
        assert!(close((I * Complex::real(std::f64::consts::PI)).exp(), -ONE));
    }
}
