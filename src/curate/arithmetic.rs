//! Checks the arithmetic that an answer writes out: every `expression = number` whose both sides can be computed.
//!
//! Only what is certain is judged. A side that touches a letter, a percent sign, a root or a remainder is left alone, and
//! a result with decimals may be rounded or cut: "2/3 = 0.66" passes, "3 + 4 = 8" does not.

/// What was found in one text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arithmetic {
    /// Equations that could be computed.
    pub checked: usize,
    /// The wrong ones among them, as written.
    pub wrong: Vec<String>,
}

/// Words after which a number is a label ("Step 1 - 3 + 4 = 7") or belongs to them ("half of 3 + 5 = 4").
const BINDING_WORDS: [&str; 20] = [
    "step", "part", "question", "problem", "case", "example", "day", "week", "equation", "chapter", "mod", "plus",
    "minus", "times", "of", "log", "ln", "sin", "cos", "tan",
];

/// Checks all equations of a text, line by line.
pub fn check(text: &str) -> Arithmetic {
    let mut found = Arithmetic::default();
    for line in text.lines().filter(|line| line.contains('=')) {
        let chars: Vec<char> = line.chars().map(plain).collect();
        for place in (0..chars.len()).filter(|&place| chars[place] == '=') {
            let is_comparison = place > 0 && matches!(chars[place - 1], '=' | '<' | '>' | '!' | ':' | '~' | '≈')
                || matches!(chars.get(place + 1), Some('=' | '>'));
            if is_comparison {
                continue;
            }
            let Some((left, start, left_operators)) = left_side(&chars, place) else { continue };
            let Some((right, end, right_operators, decimals)) = right_side(&chars, place + 1) else { continue };
            if left_operators + right_operators == 0 || !left.is_finite() || !right.is_finite() {
                continue;
            }
            found.checked += 1;
            let step = if decimals == 0 { 0.0 } else { 10f64.powi(-(decimals as i32)) };
            if (left - right).abs() > step + 1e-9 * left.abs().max(1.0) {
                found.wrong.push(chars[start..end].iter().collect::<String>().trim().to_owned());
            }
        }
    }
    found
}

fn plain(char: char) -> char {
    match char {
        '×' | '·' | '⋅' => '*',
        '÷' => '/',
        '−' | '–' => '-',
        '\u{a0}' => ' ',
        other => other,
    }
}

/// Whether a character can be a part of an expression.
fn is_part(chars: &[char], place: usize) -> bool {
    let digit = |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(char::is_ascii_digit);
    match chars[place] {
        '0'..='9' | '+' | '-' | '*' | '/' | '^' | '(' | ')' | ' ' | '$' => true,
        '.' | ',' => digit(place.checked_sub(1)) && digit(Some(place + 1)),
        _ => false,
    }
}

/// The value of what stands before an equals sign, where it begins, and its operators.
fn left_side(chars: &[char], end: usize) -> Option<(f64, usize, usize)> {
    let mut start = end;
    while start > 0 && is_part(chars, start - 1) {
        start -= 1;
    }
    // An opening bracket that is not closed here belongs to the text around: "(so 3 + 4 = 7)".
    while start < end && (chars[start] == ' ' || (chars[start] == '(' && depth(&chars[start..end]) > 0)) {
        start += 1;
    }
    let before: String = chars[..start].iter().collect();
    let last = before.trim_end().chars().next_back();
    let touches = before.chars().next_back().is_some_and(|char| char.is_alphanumeric());
    let word = before.trim_end().rsplit(|char: char| !char.is_alphabetic()).next().unwrap_or_default().to_lowercase();
    let is_variable_before = chars[start] == '-' && (chars.get(start + 1) == Some(&' ') || word.chars().count() == 1);
    let is_bound = matches!(last, Some('%' | '!' | '√' | '°' | '²' | '³' | '\\' | '}' | '_' | '|' | '[' | ']' | '#'));
    if touches || is_variable_before || is_bound || BINDING_WORDS.contains(&word.as_str()) {
        return None;
    }
    let mut parser = Parser::new(&chars[start..end]);
    let value = parser.sum()?;
    parser.spaces();
    (parser.place == end - start).then_some((value, start, parser.operators))
}

fn depth(chars: &[char]) -> i32 {
    chars.iter().map(|char| i32::from(*char == '(') - i32::from(*char == ')')).sum()
}

/// The value of what stands after an equals sign, where it ends, its operators, and its decimals.
fn right_side(chars: &[char], start: usize) -> Option<(f64, usize, usize, usize)> {
    let mut parser = Parser::new(&chars[start..]);
    let value = parser.sum()?;
    let end = start + parser.place;
    let touches =
        chars.get(end).is_some_and(|&char| char.is_alphabetic() || matches!(char, '_' | '\\' | '°' | '²' | '³' | '√'));
    let rest: String = chars[end..].iter().collect();
    let rest = rest.trim_start().to_lowercase();
    let goes_on = rest.starts_with(['%', '!', '^', '+', '*', '/', '(', '√', '\\'])
        || rest.starts_with("- ") && rest[2..].trim_start().starts_with(|char: char| char.is_ascii_alphanumeric())
        || ["remainder", "r ", "rem", "mod", "percent", "and ", "...", "…"].iter().any(|word| rest.starts_with(word));
    (!touches && !goes_on).then_some((value, end, parser.operators, parser.decimals))
}

/// Sums, products, powers, brackets and signs, with the usual precedence.
struct Parser<'a> {
    chars: &'a [char],
    place: usize,
    operators: usize,
    decimals: usize,
}

impl<'a> Parser<'a> {
    fn new(chars: &'a [char]) -> Self {
        Self { chars, place: 0, operators: 0, decimals: 0 }
    }

    fn spaces(&mut self) {
        while self.chars.get(self.place) == Some(&' ') {
            self.place += 1;
        }
    }

    /// The operator that comes next, if it is one of these and an operand follows.
    fn operator(&mut self, among: &[char]) -> Option<char> {
        let place = self.place;
        self.spaces();
        let operator = self.chars.get(self.place).copied().filter(|char| among.contains(char));
        match operator {
            // `**` and `//` are a program's, and mean something else.
            Some(char) if self.chars.get(self.place + 1) != Some(&char) => self.place += 1,
            _ => {
                self.place = place;
                return None;
            }
        }
        operator
    }

    fn sum(&mut self) -> Option<f64> {
        let mut value = self.product()?;
        loop {
            let place = self.place;
            let Some(operator) = self.operator(&['+', '-']) else { return Some(value) };
            let Some(next) = self.product() else {
                self.place = place;
                return Some(value);
            };
            self.operators += 1;
            value = if operator == '+' { value + next } else { value - next };
        }
    }

    fn product(&mut self) -> Option<f64> {
        let mut value = self.power()?;
        loop {
            let place = self.place;
            let Some(operator) = self.operator(&['*', '/']) else { return Some(value) };
            let Some(next) = self.power() else {
                self.place = place;
                return Some(value);
            };
            self.operators += 1;
            value = if operator == '*' { value * next } else { value / next };
        }
    }

    fn power(&mut self) -> Option<f64> {
        self.spaces();
        if self.chars.get(self.place) == Some(&'-') {
            self.place += 1;
            return Some(-self.power()?);
        }
        let base = self.atom()?;
        let place = self.place;
        if self.operator(&['^']).is_some() {
            let Some(exponent) = self.power() else {
                self.place = place;
                return Some(base);
            };
            self.operators += 1;
            return Some(base.powf(exponent));
        }
        Some(base)
    }

    fn atom(&mut self) -> Option<f64> {
        self.spaces();
        if self.chars.get(self.place) == Some(&'$') {
            self.place += 1;
        }
        if self.chars.get(self.place) == Some(&'(') {
            self.place += 1;
            let value = self.sum()?;
            self.spaces();
            if self.chars.get(self.place) != Some(&')') {
                return None;
            }
            self.place += 1;
            return Some(value);
        }
        let digits = |place: usize| self.chars[place..].iter().take_while(|char| char.is_ascii_digit()).count();
        let mut text = String::new();
        let mut place = self.place;
        let whole = digits(place.min(self.chars.len()));
        if whole == 0 {
            return None;
        }
        text.extend(&self.chars[place..place + whole]);
        place += whole;
        while self.chars.get(place) == Some(&',') && digits(place + 1) == 3 {
            text.extend(&self.chars[place + 1..place + 4]);
            place += 4;
        }
        if self.chars.get(place) == Some(&'.') && digits(place + 1) > 0 {
            let decimals = digits(place + 1);
            text.extend(&self.chars[place..=place + decimals]);
            place += decimals + 1;
            self.decimals = self.decimals.max(decimals);
        }
        self.place = place;
        text.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> (usize, usize) {
        let found = check(text);
        (found.checked, found.wrong.len())
    }

    #[test]
    fn right_and_wrong_results_are_told_apart() {
        for right in [
            "3 + 4 = 7",
            "So 48/2 = <<48/2=24>>24 clips.",
            "1,200 * 2 = 2,400.",
            "2/3 = 0.67",
            "2/3 = 0.66",
            "(1 + 2) × 3 = 9",
            "2^10 = 1024",
            "10 − 12 = -2",
            "7 = 3 + 4",
            "$3.50 + $1.50 = $5.00",
            "(because 3 + 4 = 7)",
            "-3 * -4 = 12",
            "1. 3 + 4 = 7 apples",
            "3+4=7=5+2",
        ] {
            let (checked, wrong) = outcome(right);
            assert!(checked > 0 && wrong == 0, "{right}: {:?}", check(right));
        }
        for bad in ["3 + 4 = 8", "Thus 12 × 12 = 140.", "10/3 = 3", "1 + 1 = 2 = 4 - 1", "100 - 1 = 9.9", "(2+2) = 5"]
        {
            assert!(outcome(bad).1 == 1, "{bad}: {:?}", check(bad));
        }
        assert_eq!(check("We get 3 + 4 = 8, so").wrong, ["3 + 4 = 8"]);
    }

    #[test]
    fn what_is_not_certain_is_left_alone() {
        for text in [
            "2x + 3 = 7",
            "x = 5",
            "7 / 2 = 3 remainder 1",
            "20% + 5 = 25%",
            "if (a + 1 == 3)",
            "f(2) + 1 = 4",
            "7 // 2 = 3",
            "3 + 4 >= 8",
            "a - 3 + 4 = 7",
            "Step 1 - 3 + 4 = 7",
            "sqrt(4) + 1 = 8",
            "3 + y = 8",
            "5! / 2 = 60",
            "4 + 4 = 2x",
            "1 + 2 = 3 + z",
            "x_1 + 2 = 9",
            "5 mod 3 + 1 = 3",
            "a[1] + 1 = 5",
        ] {
            assert_eq!(outcome(text), (0, 0), "{text}: {:?}", check(text));
        }
    }
}
