//! What Python's strings and `json` do, where Rust's own functions differ: white space, case, lenient JSON.

/// `str.isspace` of one character: Unicode white space and the four ASCII separators that Rust leaves out.
pub fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.split()`.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// A character of `\w`: letters and numbers of any script and the underscore, but no combining marks.
pub fn is_word(character: char) -> bool {
    // `char::is_alphanumeric` also holds for vowel signs, which Python counts as marks.
    character == '_'
        || character.is_ascii_alphanumeric()
        || (!character.is_ascii() && character.is_alphanumeric() && !is_mark(character))
}

fn is_mark(character: char) -> bool {
    static MARKS: std::sync::LazyLock<regex::Regex> =
        std::sync::LazyLock::new(|| regex::Regex::new(r"^[\p{M}\p{So}]").expect("the pattern is a constant"));
    MARKS.is_match(character.encode_utf8(&mut [0; 4]))
}

/// `str.isupper()`: something is in upper case, nothing in lower or title case.
pub fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(|it| it.is_lowercase() || is_title(it))
}

/// `str.islower()`: something is in lower case, nothing in upper or title case.
pub fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(|it| it.is_uppercase() || is_title(it))
}

/// Digraphs such as U+01C5: neither upper nor lower case, yet with a lower case of their own.
fn is_title(character: char) -> bool {
    !character.is_uppercase() && !character.is_lowercase() && !character.to_lowercase().eq([character])
}

/// Deepest nesting that counts as JSON; CPython gives up near its recursion limit of 1,000.
const MAX_DEPTH: usize = 900;

/// Whether `json.loads` takes the text: JSON, and beside it `NaN`, `Infinity`, `-Infinity` and lone surrogates.
pub fn is_json(text: &str) -> bool {
    let mut rest = Json { rest: text };
    rest.skip_space();
    rest.value(0) && {
        rest.skip_space();
        rest.rest.is_empty()
    }
}

struct Json<'a> {
    rest: &'a str,
}

impl Json<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    /// Takes a literal if it comes next.
    fn take(&mut self, literal: &str) -> bool {
        match self.rest.strip_prefix(literal) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> bool {
        if depth > MAX_DEPTH {
            return false;
        }
        match self.rest.as_bytes().first() {
            Some(b'"') => self.string(),
            Some(b'{') => {
                self.rest = &self.rest[1..];
                self.items("}", |json| {
                    json.string() && {
                        json.skip_space();
                        json.take(":") && {
                            json.skip_space();
                            json.value(depth + 1)
                        }
                    }
                })
            }
            Some(b'[') => {
                self.rest = &self.rest[1..];
                self.items("]", |json| json.value(depth + 1))
            }
            _ => {
                ["null", "true", "false", "NaN", "Infinity", "-Infinity"].iter().any(|word| self.take(word))
                    || self.number()
            }
        }
    }

    /// Items between commas up to `close`; the opening bracket is already taken.
    fn items(&mut self, close: &str, item: impl Fn(&mut Self) -> bool) -> bool {
        self.skip_space();
        if self.take(close) {
            return true;
        }
        loop {
            if !item(self) {
                return false;
            }
            self.skip_space();
            if self.take(close) {
                return true;
            }
            if !self.take(",") {
                return false;
            }
            self.skip_space();
        }
    }

    fn string(&mut self) -> bool {
        if !self.take("\"") {
            return false;
        }
        let mut characters = self.rest.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return true;
                }
                '\\' => match characters.next() {
                    Some((_, 'u')) => {
                        if !(0..4).all(|_| characters.next().is_some_and(|(_, it)| it.is_ascii_hexdigit())) {
                            return false;
                        }
                    }
                    Some((_, escaped)) if "\"\\/bfnrt".contains(escaped) => {}
                    _ => return false,
                },
                '\0'..='\u{1f}' => return false,
                _ => {}
            }
        }
        false
    }

    fn digits(&mut self) -> bool {
        let rest = self.rest.trim_start_matches(|it: char| it.is_ascii_digit());
        let some = rest.len() < self.rest.len();
        self.rest = rest;
        some
    }

    fn number(&mut self) -> bool {
        self.take("-");
        if !self.take("0") && !self.digits() {
            return false;
        }
        if self.take(".") && !self.digits() {
            return false;
        }
        if self.take("e") || self.take("E") {
            let _signed = self.take("+") || self.take("-");
            return self.digits();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every answer is CPython 3.11's.
    #[test]
    fn json_is_what_pythons_parser_takes() {
        for text in [
            "{}",
            " [1, -0, 0.5, 1e5, -2.5E-3] ",
            r#"{"a": [true, false, null], "b": {"c": "d\n\u00e9\ud800"}}"#,
            "NaN",
            "[Infinity, -Infinity]",
            "\"x\"",
            "5",
        ] {
            assert!(is_json(text), "{text}");
        }
        for text in [
            "",
            "{",
            "[1,]",
            "{\"a\": 1,}",
            "{'a': 1}",
            "01",
            "1.",
            ".5",
            "+1",
            "\"a\nb\"",
            "\"\\x\"",
            "\"\\u12\"",
            "[1] x",
            "nan",
            "{1: 2}",
            "\u{feff}{}",
            "-",
            "[1 2]",
        ] {
            assert!(!is_json(text), "{text}");
        }
        assert!(!is_json(&"[".repeat(100_000)));
    }

    #[test]
    fn case_and_space_are_pythons() {
        assert!(is_upper("A 1!") && !is_upper("1!") && !is_upper("Aa") && !is_upper("A\u{1c5}"));
        assert!(is_lower("a 1!") && !is_lower("1!") && !is_lower("Aa"));
        assert_eq!(strip("\u{1c} a\u{a0}b\u{2003}\n"), "a\u{a0}b");
        assert_eq!(split("a\u{1f}b  c").collect::<Vec<_>>(), ["a", "b", "c"]);
        // A vowel sign of Devanagari is no word character, its letters and digits are; nor is a circled letter.
        assert!(is_word('क') && is_word('५') && is_word('½') && !is_word('ा') && !is_word('Ⓐ'));
    }
}
