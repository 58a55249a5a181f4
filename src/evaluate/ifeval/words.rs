//! Word tokens of a sentence as NLTK's `word_tokenize` makes them (IFEval counts those in capitals).
//!
//! A fixed sequence of substitutions puts blanks around what is a token of its own, in the manner of the Penn
//! Treebank. The expressions are NLTK 3.9's convention; their order matters.

use std::sync::LazyLock;

use fancy_regex::Regex;

use super::python;

/// A word character of Python's; see [`python::is_word`].
const WORD: &str = r"[\p{L}\p{N}_]";

/// Pattern and substitution, in order. `<word>` and `<space>` stand for Python's `\w` and `\s`.
const RULES: &[(&str, &str)] = &[
    // Opening quotes.
    ("([«“‘„]|[`]+)", " $1 "),
    (r#"\A""#, "``"),
    ("(``)", " $1 "),
    (r#"([ \(\[{<])("|'{2})"#, "$1 `` "),
    (r"(?i)(')(?!re|ve|ll|m|t|s|d|n)(<word>)(?!<word>)", "$1 $2"),
    // Punctuation.
    (r#"([^.])(\.)([\]\)}>"'»”’ ]*)<space>*\z"#, "$1 $2 $3 "),
    (r"([:,])(\P{Nd})", " $1 $2"),
    (r"([:,])\z", " $1 "),
    (r"(\.{2,})", " $1 "),
    (r"([;@#$%&])", " $1 "),
    (r#"([^.])(\.)([\]\)}>"']*)<space>*\z"#, "$1 $2$3 "),
    (r"([?!])", " $1 "),
    (r"([^'])' ", "$1 ' "),
    (r"([*])", " $1 "),
    // Brackets and dashes.
    (r"([\]\[\(\)\{\}<>])", " $1 "),
    ("--", " -- "),
];

/// After the sentence has got a blank at each end.
const RULES_PADDED: &[(&str, &str)] = &[
    // Closing quotes and what is pulled together with an apostrophe.
    ("([»”’])", " $1 "),
    ("''", " '' "),
    ("\"", " '' "),
    ("<space>+", " "),
    ("([^' ])('[sS]|'[mM]|'[dD]|') ", "$1 $2 "),
    ("([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", "$1 $2 "),
    // Words that are two.
    (r"(?i)(?<!<word>)(can)(not)(?!<word>)", " $1 $2 "),
    (r"(?i)(?<!<word>)(d)('ye)(?!<word>)", " $1 $2 "),
    (r"(?i)(?<!<word>)(gim)(me)(?!<word>)", " $1 $2 "),
    (r"(?i)(?<!<word>)(gon)(na)(?!<word>)", " $1 $2 "),
    (r"(?i)(?<!<word>)(got)(ta)(?!<word>)", " $1 $2 "),
    (r"(?i)(?<!<word>)(lem)(me)(?!<word>)", " $1 $2 "),
    (r"(?i)(?<!<word>)(more)('n)(?!<word>)", " $1 $2 "),
    (r"(?i)(?<!<word>)(wan)(na)(?=<space>)", " $1 $2 "),
    (r"(?i) ('t)(is)(?!<word>)", " $1 $2 "),
    (r"(?i) ('t)(was)(?!<word>)", " $1 $2 "),
];

fn compile(rules: &'static [(&str, &'static str)]) -> Vec<(Regex, &'static str)> {
    rules
        .iter()
        .map(|(pattern, substitution)| {
            let pattern = pattern.replace("<word>", WORD).replace("<space>", r"[\s\x1c-\x1f]");
            (Regex::new(&pattern).expect("the patterns are constants and a test compiles them"), *substitution)
        })
        .collect()
}

static COMPILED: LazyLock<[Vec<(Regex, &'static str)>; 2]> = LazyLock::new(|| [compile(RULES), compile(RULES_PADDED)]);

/// The word tokens of one sentence.
pub fn word_tokens(sentence: &str) -> Vec<String> {
    let mut text = sentence.to_owned();
    let [rules, rules_padded] = &*COMPILED;
    for (pattern, substitution) in rules {
        text = pattern.replace_all(&text, *substitution).into_owned();
    }
    text = format!(" {text} ");
    for (pattern, substitution) in rules_padded {
        text = pattern.replace_all(&text, *substitution).into_owned();
    }
    python::split(&text).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: `NLTKWordTokenizer().tokenize` of NLTK 3.9.2.
    #[test]
    fn tokens_are_those_of_nltk() {
        for (sentence, expected) in [
            (
                "NASA's \"U.S. office\" CANNOT pay $5,000 (or more)...",
                "NASA|'s|``|U.S.|office|''|CAN|NOT|pay|$|5,000|(|or|more|)|...",
            ),
            ("COVID-19 isn't over.", "COVID-19|is|n't|over|."),
            ("WE'RE HERE: \"YES!\"", "WE|'RE|HERE|:|``|YES|!|''"),
            ("'Tis THE end -- I wanna go, 'A' said.", "'T|is|THE|end|--|I|wan|na|go|,|'|A|'|said|."),
            ("“Quoted” *BOLD* e.g. this.)", "“|Quoted|”|*|BOLD|*|e.g.|this|.|)"),
        ] {
            assert_eq!(word_tokens(sentence).join("|"), expected, "{sentence}");
        }
    }
}
