//! Reads LaTeX as sympy's grammar does: the longest beginning that makes sense, and nothing if there is none.
//!
//! **Source**: the grammar `LaTeX.g4` of sympy, as far as answers need it: no integrals, sums, limits, bras and kets.

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Expression {
    /// A number.
    Number(f64),
    /// A letter, a command that means nothing else, or a differential.
    Symbol(String),
    /// Infinity.
    Infinity,
    /// Sum.
    Add(Box<Expression>, Box<Expression>),
    /// Product.
    Mul(Box<Expression>, Box<Expression>),
    /// Quotient.
    Div(Box<Expression>, Box<Expression>),
    /// Negation.
    Neg(Box<Expression>),
    /// Power.
    Pow(Box<Expression>, Box<Expression>),
    /// A function, known by name or not.
    Call(String, Vec<Expression>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Digit(char),
    Letter(char),
    Command(String),
    Differential(String),
    Mark(char),
    Relation,
}

const SKIPPED: [&str; 13] = [
    "left",
    "right",
    "quad",
    "qquad",
    "thinspace",
    "medspace",
    "thickspace",
    "negthinspace",
    "negmedspace",
    "negthickspace",
    "vspace",
    "hfil",
    "vskip",
];
const RELATIONS: [&str; 9] = ["neq", "leq", "le", "leqq", "leqslant", "geq", "ge", "geqq", "geqslant"];
const FUNCTIONS: [&str; 22] = [
    "exp", "log", "lg", "ln", "sin", "cos", "tan", "csc", "sec", "cot", "arcsin", "arccos", "arctan", "arccsc",
    "arcsec", "arccot", "sinh", "cosh", "tanh", "arsinh", "arcosh", "artanh",
];
/// Commands with a meaning of their own, so that they are no letters.
const KEYWORDS: [&str; 27] = [
    "times",
    "cdot",
    "div",
    "frac",
    "dfrac",
    "tfrac",
    "binom",
    "dbinom",
    "tbinom",
    "sqrt",
    "overline",
    "mathit",
    "lfloor",
    "rfloor",
    "lceil",
    "rceil",
    "langle",
    "rangle",
    "lim",
    "int",
    "sum",
    "prod",
    "to",
    "rightarrow",
    "Rightarrow",
    "longrightarrow",
    "Longrightarrow",
];

/// Tokens up to the first character that is none; `None` where that comes before anything else could be read.
fn tokens(text: &str) -> Option<Vec<Token>> {
    let characters: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    let word = |mut at: usize| {
        let start = at;
        while characters.get(at).is_some_and(char::is_ascii_alphabetic) {
            at += 1;
        }
        (characters[start..at].iter().collect::<String>(), at)
    };
    while let Some(&character) = characters.get(at) {
        at += 1;
        match character {
            ' ' | '\t' | '\r' | '\n' => {}
            '0'..='9' => tokens.push(Token::Digit(character)),
            'd' => {
                let mut next = at;
                while characters.get(next).is_some_and(|it| it.is_ascii_whitespace()) {
                    next += 1;
                }
                match characters.get(next) {
                    Some(letter) if letter.is_ascii_alphabetic() => {
                        tokens.push(Token::Differential(format!("d{letter}")));
                        at = next + 1;
                    }
                    Some('\\') if characters.get(next + 1).is_some_and(char::is_ascii_alphabetic) => {
                        let (command, end) = word(next + 1);
                        tokens.push(Token::Differential(format!("d{command}")));
                        at = end;
                    }
                    _ => tokens.push(Token::Letter('d')),
                }
            }
            'a'..='z' | 'A'..='Z' => tokens.push(Token::Letter(character)),
            '=' | '<' | '>' => tokens.push(Token::Relation),
            '+' | '-' | '*' | '/' | '(' | ')' | '{' | '}' | '[' | ']' | '|' | '_' | '^' | ':' | '!' | '\'' | ','
            | '.' => {
                tokens.push(Token::Mark(character));
            }
            '\\' => match characters.get(at) {
                Some(letter) if letter.is_ascii_alphabetic() => {
                    let (command, end) = word(at);
                    at = end;
                    if RELATIONS.contains(&command.as_str()) {
                        tokens.push(Token::Relation);
                    } else if !SKIPPED.contains(&command.as_str()) {
                        tokens.push(Token::Command(command));
                    }
                }
                Some(&brace @ ('{' | '}')) => {
                    at += 1;
                    // Written braces are brackets of their own kind.
                    tokens.push(Token::Mark(if brace == '{' { '\u{2983}' } else { '\u{2984}' }));
                }
                Some(',' | ':' | ';' | '!' | '*' | '-' | '.' | '/' | '"' | '(' | '=') => at += 1,
                _ => return None,
            },
            _ => return None,
        }
    }
    Some(tokens)
}

/// The expression that a text begins with; `None` for a text that begins with none, and for equations and inequalities.
pub fn expression(text: &str) -> Option<Expression> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens, at: 0, is_broken: false };
    let found = parser.additive()?;
    if parser.is_broken {
        return None;
    }
    if parser.peek() == Some(&Token::Relation) {
        parser.at += 1;
        // An equation has no value; an "=" that nothing follows is left out.
        if parser.additive().is_some() {
            return None;
        }
    }
    Some(found)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    /// A number ended in a point: an error that nothing can be read around.
    is_broken: bool,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn mark(&mut self, mark: char) -> Option<()> {
        (self.peek() == Some(&Token::Mark(mark))).then(|| self.at += 1)
    }

    fn command(&mut self, names: &[&str]) -> Option<String> {
        match self.peek() {
            Some(Token::Command(name)) if names.contains(&name.as_str()) => {
                let name = name.clone();
                self.at += 1;
                Some(name)
            }
            _ => None,
        }
    }

    /// What a reading gives, or nothing and the place where it began.
    fn attempt<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let start = self.at;
        let found = read(self);
        if found.is_none() {
            self.at = start;
        }
        found
    }

    fn additive(&mut self) -> Option<Expression> {
        let mut sum = self.product(true)?;
        loop {
            let term = self.attempt(|it| {
                let minus = it.mark('+').is_none();
                if minus {
                    it.mark('-')?;
                }
                let term = it.product(true)?;
                Some(if minus { Expression::Neg(Box::new(term)) } else { term })
            });
            match term {
                Some(term) => sum = Expression::Add(Box::new(sum), Box::new(term)),
                None => return Some(sum),
            }
        }
    }

    fn product(&mut self, functions: bool) -> Option<Expression> {
        let mut product = self.unary(functions)?;
        loop {
            let factor = self.attempt(|it| {
                let divides = match it.peek() {
                    Some(Token::Mark('*')) => false,
                    Some(Token::Mark('/' | ':')) => true,
                    Some(Token::Command(name)) if name == "times" || name == "cdot" => false,
                    Some(Token::Command(name)) if name == "div" => true,
                    _ => return None,
                };
                it.at += 1;
                Some((divides, it.unary(functions)?))
            });
            product = match factor {
                Some((true, factor)) => Expression::Div(Box::new(product), Box::new(factor)),
                Some((false, factor)) => Expression::Mul(Box::new(product), Box::new(factor)),
                None => return Some(product),
            };
        }
    }

    /// A sign, or factors next to each other. Where `functions` is not set only the first may be a function.
    fn unary(&mut self, functions: bool) -> Option<Expression> {
        if self.mark('+').is_some() {
            return self.unary(functions);
        }
        if self.mark('-').is_some() {
            return self.unary(functions).map(|inner| Expression::Neg(Box::new(inner)));
        }
        let mut product = self.postfix(true)?;
        while let Some(factor) = self.attempt(|it| it.postfix(functions)) {
            product = Expression::Mul(Box::new(product), Box::new(factor));
        }
        Some(product)
    }

    fn postfix(&mut self, functions: bool) -> Option<Expression> {
        let mut base = self.part(functions)?;
        while let Some(exponent) = self.attempt(|it| it.superscript()) {
            base = Expression::Pow(Box::new(base), Box::new(exponent));
        }
        while self.mark('!').is_some() {
            base = Expression::Call("factorial".into(), vec![base]);
        }
        Some(base)
    }

    fn superscript(&mut self) -> Option<Expression> {
        self.mark('^')?;
        self.script()
    }

    fn script(&mut self) -> Option<Expression> {
        self.attempt(|it| it.enclosed('{', '}')).or_else(|| self.atom())
    }

    fn enclosed(&mut self, open: char, close: char) -> Option<Expression> {
        self.mark(open)?;
        let inner = self.additive()?;
        self.mark(close)?;
        Some(inner)
    }

    fn part(&mut self, functions: bool) -> Option<Expression> {
        for (open, close) in [('(', ')'), ('[', ']'), ('{', '}'), ('\u{2983}', '\u{2984}')] {
            if let Some(group) = self.attempt(|it| it.enclosed(open, close)) {
                return Some(group);
            }
        }
        let absolute = self.attempt(|it| it.enclosed('|', '|'));
        if let Some(inner) = absolute {
            return Some(Expression::Call("abs".into(), vec![inner]));
        }
        for (open, close, name) in [("lfloor", "rfloor", "floor"), ("lceil", "rceil", "ceil")] {
            let inner = self.attempt(|it| {
                it.command(&[open])?;
                let inner = it.additive()?;
                it.command(&[close]).map(|_| inner)
            });
            if let Some(inner) = inner {
                return Some(Expression::Call(name.into(), vec![inner]));
            }
        }
        let called = if functions { self.attempt(Self::function) } else { None };
        called.or_else(|| self.attempt(Self::atom))
    }

    fn function(&mut self) -> Option<Expression> {
        if self.command(&["sqrt"]).is_some() {
            let root = self.attempt(|it| it.enclosed('[', ']'));
            let base = self.enclosed('{', '}')?;
            let one = || Box::new(Expression::Number(1.0));
            let root = root.unwrap_or(Expression::Number(2.0));
            return Some(Expression::Pow(Box::new(base), Box::new(Expression::Div(one(), Box::new(root)))));
        }
        if self.command(&["overline"]).is_some() {
            return Some(Expression::Call("conjugate".into(), vec![self.enclosed('{', '}')?]));
        }
        if let Some(name) = self.command(&FUNCTIONS) {
            return self.named_function(name);
        }
        // A letter before a bracket is a function.
        let name = self.symbol()?;
        self.mark('(')?;
        let mut arguments = vec![self.additive()?];
        while self.mark(',').is_some() {
            arguments.push(self.additive()?);
        }
        self.mark(')')?;
        Some(Expression::Call(format!("{name}()"), arguments))
    }

    fn named_function(&mut self, name: String) -> Option<Expression> {
        let (mut base, mut power) = (None, None);
        for _ in 0..2 {
            if base.is_none() {
                base = self.attempt(|it| it.mark('_').and_then(|()| it.script()));
            }
            if power.is_none() {
                power = self.attempt(Self::superscript);
            }
        }
        let argument = self.attempt(|it| it.enclosed('(', ')')).or_else(|| self.attempt(|it| it.product(false)))?;
        let is_inverse = power == Some(Expression::Neg(Box::new(Expression::Number(1.0))));
        let name = if is_inverse && !name.starts_with("ar") { format!("arc{name}") } else { name };
        let mut arguments = vec![argument];
        arguments.extend(base);
        let value = Expression::Call(name, arguments);
        Some(match power.filter(|_| !is_inverse) {
            Some(power) => Expression::Pow(Box::new(value), Box::new(power)),
            None => value,
        })
    }

    fn symbol(&mut self) -> Option<String> {
        let mut name = match self.peek()? {
            Token::Letter(letter) => letter.to_string(),
            Token::Command(name) if !KEYWORDS.contains(&name.as_str()) && !FUNCTIONS.contains(&name.as_str()) => {
                name.clone()
            }
            _ => return None,
        };
        self.at += 1;
        for _ in 0..2 {
            let start = self.at;
            if self.attempt(|it| it.mark('_').and_then(|()| it.script())).is_some() {
                name += &format!("_{:?}", &self.tokens[start..self.at]);
            }
            while self.mark('\'').is_some() {
                name.push('\'');
            }
        }
        Some(name)
    }

    fn atom(&mut self) -> Option<Expression> {
        if let Some(number) = self.number() {
            return Some(number);
        }
        if let Some(Token::Differential(name)) = self.peek() {
            let name = name.clone();
            self.at += 1;
            return Some(Expression::Symbol(name));
        }
        if self.command(&["frac", "dfrac", "tfrac"]).is_some() {
            let (above, below) = (self.digit_or_group()?, self.digit_or_group()?);
            return Some(Expression::Div(Box::new(above), Box::new(below)));
        }
        if self.command(&["binom", "dbinom", "tbinom"]).is_some() {
            let (n, k) = (self.enclosed('{', '}')?, self.enclosed('{', '}')?);
            return Some(Expression::Call("binomial".into(), vec![n, k]));
        }
        if self.command(&["mathit"]).is_some() {
            self.mark('{')?;
            let mut name = String::new();
            while let Some(Token::Letter(letter)) = self.peek() {
                name.push(*letter);
                self.at += 1;
            }
            return self.mark('}').map(|()| Expression::Symbol(name));
        }
        let name = self.symbol()?;
        Some(if name == "infty" { Expression::Infinity } else { Expression::Symbol(name) })
    }

    fn digit_or_group(&mut self) -> Option<Expression> {
        if let Some(Token::Digit(digit)) = self.peek() {
            let value = f64::from(digit.to_digit(10)?);
            self.at += 1;
            return Some(Expression::Number(value));
        }
        self.enclosed('{', '}')
    }

    /// Digits, in groups of three after commas, with decimals.
    fn number(&mut self) -> Option<Expression> {
        let digit = |it: &Self, offset: usize| match it.tokens.get(it.at + offset) {
            Some(Token::Digit(digit)) => Some(*digit),
            _ => None,
        };
        let mut text = String::new();
        while let Some(found) = digit(self, 0) {
            text.push(found);
            self.at += 1;
        }
        if text.is_empty() {
            return None;
        }
        while self.peek() == Some(&Token::Mark(',')) {
            let (Some(first), Some(second), Some(third)) = (digit(self, 1), digit(self, 2), digit(self, 3)) else {
                break;
            };
            text.extend([first, second, third]);
            self.at += 4;
        }
        if self.peek() == Some(&Token::Mark('.')) {
            if digit(self, 1).is_none() {
                self.is_broken = true;
                return None;
            }
            text.push('.');
            self.at += 1;
            while let Some(found) = digit(self, 0) {
                text.push(found);
                self.at += 1;
            }
        }
        text.parse().ok().map(Expression::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: f64) -> Option<Expression> {
        Some(Expression::Number(value))
    }

    #[test]
    fn the_longest_beginning_that_makes_sense_is_read() {
        // Each as sympy 1.14 reads it.
        assert_eq!(expression("1,2"), number(1.0));
        assert_eq!(expression("1,000"), number(1000.0));
        assert_eq!(expression("10,00"), number(10.0));
        assert_eq!(expression("3)"), number(3.0));
        assert_eq!(expression("90^"), number(90.0));
        assert_eq!(expression("5 5"), number(55.0));
        assert_eq!(expression("x+"), Some(Expression::Symbol("x".into())));
        assert_eq!(expression("dx"), Some(Expression::Symbol("dx".into())));
        assert_eq!(expression("x \\in [1,2]"), expression("x \\in"));
    }

    #[test]
    fn what_begins_with_nothing_readable_is_not_read() {
        for text in ["(3,4)", "[2,5)", "5\\%", "\\{1,2\\}", "", ".5", "5.", "3;4", "#", "(x", "|x", "\\frac{a}b", "x<5"]
        {
            assert_eq!(expression(text), None, "{text}");
        }
    }
}
