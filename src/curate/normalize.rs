//! Text as duplicate search and decontamination see it: a sequence of plain words.
//!
//! Case, white space and punctuation go; numbers and arithmetic signs stay, because "what is 34 + 25" and
//! "what is 34 - 26" are different questions. Forms that look alike are one (Unicode's NFKC, accents dropped): full-width
//! letters, ligatures, `x²` and `x^2`, "naïve" and "naive".

use unicode_normalization::UnicodeNormalization;

/// The words of a text.
///
/// A word is a run of letters and digits in lower case, a number with its decimal point, or one arithmetic sign.
/// Chinese and Japanese characters are a word each, since their scripts put no spaces between words. What every later
/// step asks of a word (its hash, whether it is a number) is found out here, once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    /// All words, one after the other.
    text: String,
    words: Vec<Word>,
}

/// One word of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word {
    /// [`hash_word`] of it.
    hash: u64,
    /// Where it ends in the text of all words; ascending.
    end: u32,
    is_number: bool,
    is_content: bool,
    is_sign: bool,
}

impl Words {
    /// Cuts a text into words.
    pub fn of(text: &str) -> Self {
        let mut words = Words { text: String::with_capacity(text.len()), words: Vec::with_capacity(text.len() / 5) };
        words.push_text(text);
        words
    }

    /// Appends the words of another text.
    pub fn push_text(&mut self, text: &str) {
        if text.is_ascii() { self.push_chars(text.as_bytes()) } else { self.push_chars(&plain_chars(text)) }
    }

    /// Appends words that are already cut.
    pub fn append(&mut self, other: &Self) {
        let start = self.text.len();
        self.text.push_str(&other.text);
        self.words.extend(other.words.iter().map(|word| Word { end: end_of(start + word.end as usize), ..*word }));
    }

    /// `chars` are ASCII bytes or plain characters.
    fn push_chars<C: Copy + Into<char>>(&mut self, chars: &[C]) {
        let first = self.words.len();
        for (place, &char) in chars.iter().enumerate() {
            let char: char = char.into();
            if char.is_ascii_alphanumeric() {
                self.text.push(char.to_ascii_lowercase());
            } else if char == ' ' {
                self.end_word(first);
            } else if is_ideograph(char) {
                self.end_word(first);
                self.text.push(char);
                self.end_word(first);
            } else if char.is_alphanumeric() {
                self.text.extend(char.to_lowercase());
            } else if is_operator(chars, place) {
                self.end_word(first);
                self.text.push(plain_operator(char));
                self.end_word(first);
            } else if is_decimal_point(chars, place) {
                self.text.push('.');
            } else if !is_inner(chars, place) {
                self.end_word(first);
            }
        }
        self.end_word(first);
    }

    /// Number of words.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there is no word.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// One word.
    pub fn word(&self, index: usize) -> &str {
        &self.text[self.start(index)..self.words[index].end as usize]
    }

    /// [`hash_word`] of one word.
    pub fn hash(&self, index: usize) -> u64 {
        self.words[index].hash
    }

    /// [`is_number`] of one word.
    pub fn is_number(&self, index: usize) -> bool {
        self.words[index].is_number
    }

    /// [`is_content`] of one word.
    pub fn is_content(&self, index: usize) -> bool {
        self.words[index].is_content
    }

    /// [`is_sign`] of one word.
    pub fn is_sign(&self, index: usize) -> bool {
        self.words[index].is_sign
    }

    /// All words in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|index| self.word(index))
    }

    /// [`hash_word`] of all words in order.
    pub fn hashes(&self) -> impl ExactSizeIterator<Item = u64> {
        self.words.iter().map(|word| word.hash)
    }

    /// Words `start..end` with a space between them.
    pub fn join(&self, start: usize, end: usize) -> String {
        (start..end).map(|index| self.word(index)).collect::<Vec<_>>().join(" ")
    }

    fn start(&self, index: usize) -> usize {
        if index == 0 { 0 } else { self.words[index - 1].end as usize }
    }

    /// Ends the word that is being written, if there is one; `first` is the first word of the text that it is of.
    fn end_word(&mut self, first: usize) {
        let mut start = self.start(self.words.len());
        if self.text.len() == start {
            return;
        }
        // "don t" and "Janet s" have lost an apostrophe to somebody who strips punctuation.
        let is_tail = matches!(&self.text[start..], "s" | "t" | "re" | "ll" | "ve");
        if is_tail && self.words.len() > first && self.words[self.words.len() - 1].is_content {
            self.words.pop();
            start = self.start(self.words.len());
        }
        let word = &self.text[start..];
        let is_number = is_number(word);
        self.words.push(Word {
            hash: hash_word(word),
            end: end_of(self.text.len()),
            is_number,
            is_content: !is_number && is_content(word),
            is_sign: is_sign(word),
        });
    }
}

fn end_of(length: usize) -> u32 {
    u32::try_from(length).expect("a text has less than 4 GiB")
}

/// The characters of a text in their plainest form.
fn plain_chars(text: &str) -> Vec<char> {
    let mut raised = false;
    let mut spelled = String::with_capacity(text.len());
    for char in text.chars() {
        let is_raised = matches!(char, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '⁺' | '⁻');
        if is_raised && !raised {
            spelled.push('^');
        }
        raised = is_raised;
        match char {
            // Invisible: soft hyphen, zero-width spaces and joiners, direction marks.
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' => {}
            // Case folding that no single letter of the other case gives back.
            'ß' | 'ẞ' => spelled.push_str("ss"),
            'ς' => spelled.push('σ'),
            'ı' => spelled.push('i'),
            '´' | '‘' | 'ʼ' | '＇' => spelled.push('\''),
            '½' | '¼' | '¾' => spelled.extend([' ', char]),
            other => spelled.push(other),
        }
    }
    let is_accent = |char: &char| ('\u{300}'..='\u{36f}').contains(char);
    spelled
        .nfkd()
        .filter(|char| !is_accent(char))
        .nfc()
        .map(|char| if char == '\u{2044}' { '/' } else { char })
        .collect()
}

/// Words of an item as people count them: runs between white space that hold a letter or a digit, and every ideograph.
pub fn item_words(text: &str) -> usize {
    text.split_whitespace()
        .map(|run| {
            let ideographs = run.chars().filter(|&char| is_ideograph(char)).count();
            ideographs.max(usize::from(run.chars().any(char::is_alphanumeric)))
        })
        .sum()
}

/// Whether a word holds a digit.
pub fn is_number(word: &str) -> bool {
    word.bytes().any(|byte| byte.is_ascii_digit())
}

/// Whether a word is an arithmetic sign.
pub fn is_sign(word: &str) -> bool {
    word.chars().all(|char| !char.is_alphanumeric())
}

/// Whether a word says something: it has two letters or more and no digit, or is an ideograph.
pub fn is_content(word: &str) -> bool {
    !is_number(word)
        && word.chars().all(char::is_alphanumeric)
        && (word.chars().nth(1).is_some() || word.chars().all(is_ideograph))
}

/// A 64-bit hash of one word, the same on every machine.
///
/// **Source**: FNV-1a, then the finaliser of SplitMix64 (FNV's high bits are weak on short inputs).
pub fn hash_word(word: &str) -> u64 {
    let hash = word
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    mix(hash)
}

/// Spreads the bits of a number over all 64 (the finaliser of SplitMix64; a bijection).
pub fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A 64-bit hash of a sequence of hashes; order counts.
pub fn hash_sequence(hashes: impl IntoIterator<Item = u64>) -> u64 {
    hashes.into_iter().fold(HASH_START, hash_next)
}

/// The hash of the empty sequence.
pub const HASH_START: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of a sequence with one more hash at its end.
pub fn hash_next(sequence: u64, hash: u64) -> u64 {
    mix(sequence.rotate_left(5) ^ hash)
}

/// Whether a character is a word by itself.
fn is_ideograph(char: char) -> bool {
    matches!(char, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{2fa1f}')
}

/// Whether a mark belongs inside a word: an apostrophe between letters, or a comma that groups thousands.
fn is_inner<C: Copy + Into<char>>(chars: &[C], place: usize) -> bool {
    let (Some(before), Some(after)) =
        (place.checked_sub(1).and_then(|at| char_at(chars, at)), char_at(chars, place + 1))
    else {
        return false;
    };
    match chars[place].into() {
        '\'' | '’' | '`' => before.is_alphabetic() && after.is_alphabetic(),
        // `1,000` is one number; `1,2` is two.
        ',' => {
            let digits = chars[place + 1..].iter().take_while(|&&char| is_digit(char)).count();
            before.is_ascii_digit() && digits == 3
        }
        _ => false,
    }
}

fn char_at<C: Copy + Into<char>>(chars: &[C], place: usize) -> Option<char> {
    chars.get(place).map(|&char| char.into())
}

fn is_digit<C: Into<char>>(char: C) -> bool {
    char.into().is_ascii_digit()
}

fn is_decimal_point<C: Copy + Into<char>>(chars: &[C], place: usize) -> bool {
    chars[place].into() == '.'
        && place > 0
        && is_digit(chars[place - 1])
        && chars.get(place + 1).is_some_and(|&char| is_digit(char))
}

/// Whether a mark is arithmetic. `+ = ^ %` always are; a dash, a slash or an angle bracket only between numbers or lone
/// letters, since in prose ("well-known", "and/or", "Paris - the city") it is punctuation that another writer leaves out.
fn is_operator<C: Copy + Into<char>>(chars: &[C], place: usize) -> bool {
    let mark: char = chars[place].into();
    match mark {
        '+' | '=' | '^' | '%' | '×' | '÷' | '≤' | '≥' | '≠' => true,
        // `**bold**` and bullet points are Markdown, not multiplication.
        '*' | '-' | '−' | '–' | '/' | '<' | '>' => {
            let is_space = |char: C| char.into().is_whitespace();
            // At the start of a line it is a bullet or a quotation mark, whatever stands above.
            let left = chars[..place].iter().rposition(|&char| !is_space(char) || char.into() == '\n');
            let left = left.filter(|&left| chars[left].into() != '\n');
            let right = chars[place + 1..].iter().position(|&char| !is_space(char)).map(|at| at + place + 1);
            let Some(right) = right.filter(|&at| is_operand(chars, at)) else { return false };
            match left {
                Some(left) => is_operand(chars, left),
                None => matches!(mark, '-' | '−' | '–') && right == place + 1 && is_digit(chars[right]),
            }
        }
        _ => false,
    }
}

/// Whether the character at `place` can stand next to an arithmetic sign: a digit, a bracket, or a letter on its own.
fn is_operand<C: Copy + Into<char>>(chars: &[C], place: usize) -> bool {
    let char: char = chars[place].into();
    let is_letter_at =
        |index: Option<usize>| index.and_then(|index| char_at(chars, index)).is_some_and(char::is_alphabetic);
    char.is_ascii_digit()
        || matches!(char, '(' | ')')
        || (char.is_alphabetic() && !is_letter_at(place.checked_sub(1)) && !is_letter_at(Some(place + 1)))
}

fn plain_operator(char: char) -> char {
    match char {
        '−' | '–' => '-',
        '×' => '*',
        '÷' => '/',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(text: &str) -> String {
        let words = Words::of(text);
        words.join(0, words.len())
    }

    #[test]
    fn case_spaces_and_punctuation_do_not_count() {
        assert_eq!(joined("  Don’t   PANIC: it's\n\"well-known\"! "), "dont panic its well known");
        assert_eq!(joined("and/or, Paris - the city"), "and or paris the city");
    }

    #[test]
    fn numbers_and_arithmetic_signs_count() {
        assert_eq!(joined("What is 34 + 25?"), "what is 34 + 25");
        assert_eq!(joined("34 - 25, 34-25, 6/2, x - y"), "34 - 25 34 - 25 6 / 2 x - y");
        assert_eq!(joined("1,000 apples cost $3.50."), "1000 apples cost 3.50");
        assert_eq!(joined("-5 and 1,2"), "- 5 and 1 2");
        assert_eq!(joined("2 × 3 **bold** text"), "2 * 3 bold text");
        assert_eq!(joined("take 5\n- 3 apples\n> b\n* c"), "take 5 3 apples b c");
        assert_eq!(joined("<div>x</div> <<48/2=24>>24, 3 < 5"), "div x div 48 / 2 = 24 24 3 < 5");
    }

    #[test]
    fn forms_that_look_alike_are_one() {
        assert_eq!(joined("Ｗｈａｔ　ｉｓ ３４ ＋ ２５？"), "what is 34 + 25");
        assert_eq!(joined("naïve Café ﬁne STRASSE"), joined("NAÏVE CAFÉ fine straße"));
        assert_eq!(joined("x² + ½"), "x ^ 2 + 1 / 2");
        assert_eq!(joined("so\u{200b}ft\u{ad}ly don‘t don t Janet s"), "softly dont dont janets");
        assert_eq!(joined("distance d = 5 s"), "distance d = 5 s");
        assert_eq!(joined("한국어 がく"), "한국어 が く");
    }

    #[test]
    fn ideographs_are_words_of_their_own() {
        assert_eq!(joined("历史地理, ok"), "历 史 地 理 ok");
    }

    #[test]
    fn kinds_of_words_are_told_apart() {
        assert!(is_number("3.5") && is_number("h2o") && !is_number("water"));
        assert!(is_sign("+") && !is_sign("a"));
        assert!(is_content("water") && is_content("水") && !is_content("a") && !is_content("12") && !is_content("="));
    }

    #[test]
    fn appending_gives_the_same_words_as_joining() {
        let mut words = Words::of("one two");
        words.push_text("three");
        words.append(&Words::of("don t 1,000 水"));
        assert_eq!(words, Words::of("one two three don t 1,000 水"));
        words.push_text("s");
        assert_eq!(words.word(words.len() - 1), "s", "a tail belongs to a word of its own text");
        assert_ne!(hash_sequence([1, 2]), hash_sequence([2, 1]));
    }
}
