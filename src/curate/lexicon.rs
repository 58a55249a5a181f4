//! The word lists of the audit: who and what a text speaks of, and which words to exchange for a counterfactual.

use std::{
    collections::{BTreeMap, HashMap},
    hash::BuildHasherDefault,
    path::Path,
    sync::LazyLock,
};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{
    minhash::Identity,
    normalize::{Words, hash_word},
};

/// The lists that the program brings along.
const BUILT_IN: &str = include_str!("../../configs/lexicons/audit.toml");
/// The group that counts as toxic.
const TOXIC: &str = "toxic";

/// Word lists, ready to be looked up.
pub struct Lexicon {
    /// Groups with their categories, in order.
    groups: Vec<(String, Vec<String>)>,
    /// Hash of a word or of its plural -> places in the flat list of all categories.
    places: HashMap<u64, Vec<usize>, BuildHasherDefault<Identity>>,
    /// Which of all categories are toxic.
    toxic: Vec<bool>,
    /// Word -> its counterpart of the other gender.
    exchange: HashMap<String, String>,
    is_name: HashMap<String, ()>,
}

/// How a file of lists is written.
#[derive(Deserialize)]
struct Lists {
    #[serde(default)]
    counterfactual: Counterfactual,
    #[serde(flatten)]
    groups: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Counterfactual {
    words: Vec<(String, String)>,
    names: Vec<(String, String)>,
}

impl Lexicon {
    /// The lists inside the program.
    pub fn built_in() -> &'static Self {
        static LEXICON: LazyLock<Lexicon> =
            LazyLock::new(|| Lexicon::parse(BUILT_IN).expect("the built-in lists are well-formed"));
        &LEXICON
    }

    /// Lists of a file, written as `configs/lexicons/audit.toml` is.
    ///
    /// **Errors**: the file is missing or not such lists; both name it.
    pub fn read(path: &Path) -> Result<Self> {
        let content = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the word lists `{}` (`curate.lexicon`)", path.display()))?;
        Self::parse(&content).with_context(|| format!("`{}` holds no word lists (`curate.lexicon`)", path.display()))
    }

    fn parse(content: &str) -> Result<Self> {
        let lists: Lists = toml::from_str(content)?;
        let mut lexicon = Self {
            groups: Vec::new(),
            places: HashMap::default(),
            toxic: Vec::new(),
            exchange: HashMap::new(),
            is_name: HashMap::new(),
        };
        let mut listed: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (group, categories) in lists.groups {
            for words in categories.values() {
                let place = lexicon.toxic.len();
                lexicon.toxic.push(group == TOXIC);
                for word in words {
                    let places = listed.entry(word.to_lowercase()).or_default();
                    if !places.contains(&place) {
                        places.push(place);
                    }
                }
            }
            lexicon.groups.push((group, categories.into_keys().collect()));
        }
        lexicon.places.extend(listed.iter().map(|(word, places)| (hash_word(word), places.clone())));
        for (word, places) in listed {
            lexicon.places.entry(hash_word(&(word + "s"))).or_insert(places);
        }
        for (one, other) in lists.counterfactual.words.iter().chain(&lists.counterfactual.names) {
            lexicon.exchange.insert(one.to_lowercase(), other.to_lowercase());
            lexicon.exchange.insert(other.to_lowercase(), one.to_lowercase());
        }
        for (one, other) in lists.counterfactual.names {
            lexicon.is_name.insert(one.to_lowercase(), ());
            lexicon.is_name.insert(other.to_lowercase(), ());
        }
        Ok(lexicon)
    }

    /// Groups with their categories; all categories in this order are what [`Self::mentions`] counts.
    pub fn groups(&self) -> &[(String, Vec<String>)] {
        &self.groups
    }

    /// Mentions of every category in a text.
    pub fn mentions(&self, words: &Words) -> Vec<u32> {
        let mut counts = vec![0; self.toxic.len()];
        for hash in words.hashes() {
            self.places.get(&hash).into_iter().flatten().for_each(|&place| counts[place] += 1);
        }
        counts
    }

    /// Mentions of words on the toxicity lists, among those that [`Self::mentions`] has counted.
    pub fn toxic_words(&self, mentions: &[u32]) -> u32 {
        mentions.iter().zip(&self.toxic).filter(|(_, toxic)| **toxic).map(|(count, _)| count).sum()
    }

    /// The text with the words and names of one gender exchanged for those of the other; `None` when it has none.
    ///
    /// Names count only where they are capitalised. "her" becomes "his" before what can be a noun and "him" elsewhere.
    pub fn counterfactual(&self, text: &str) -> Option<String> {
        let mut other = String::with_capacity(text.len());
        let mut changed = false;
        let mut rest = text;
        while !rest.is_empty() {
            let letters = rest.find(|char: char| !char.is_alphabetic()).unwrap_or(rest.len());
            if letters == 0 {
                let gap = rest.find(char::is_alphabetic).unwrap_or(rest.len());
                other.push_str(&rest[..gap]);
                rest = &rest[gap..];
                continue;
            }
            let (word, after) = rest.split_at(letters);
            match self.counterpart(word, after) {
                Some(counterpart) => {
                    changed = true;
                    other.push_str(&in_case_of(word, &counterpart));
                }
                None => other.push_str(word),
            }
            rest = after;
        }
        changed.then_some(other)
    }

    fn counterpart(&self, word: &str, after: &str) -> Option<String> {
        let plain = word.to_lowercase();
        match plain.as_str() {
            "his" => return Some(if is_before_noun(after) { "her" } else { "hers" }.into()),
            "him" => return Some("her".into()),
            "her" => return Some(if is_before_noun(after) { "his" } else { "him" }.into()),
            "hers" => return Some("his".into()),
            _ => {}
        }
        let is_capital = word.chars().next().is_some_and(char::is_uppercase);
        self.exchange.get(&plain).filter(|_| is_capital || !self.is_name.contains_key(&plain)).cloned()
    }
}

/// Whether a possessive can stand before this: a word follows at once that is no function word.
fn is_before_noun(after: &str) -> bool {
    const FUNCTION_WORDS: [&str; 36] = [
        "a", "an", "the", "and", "or", "but", "to", "for", "in", "on", "at", "of", "with", "by", "from", "as", "that",
        "if", "when", "while", "because", "so", "is", "was", "will", "would", "can", "could", "not", "it", "into",
        "about", "then", "what", "how", "again",
    ];
    let Some(next) = after.strip_prefix(' ') else { return false };
    let word: String = next.chars().take_while(|char| char.is_alphabetic()).collect::<String>().to_lowercase();
    !word.is_empty() && !FUNCTION_WORDS.contains(&word.as_str())
}

/// The counterpart written as the word is: small, capitalised or in capitals.
fn in_case_of(word: &str, counterpart: &str) -> String {
    let mut chars = word.chars();
    let is_capital = chars.next().is_some_and(char::is_uppercase);
    if is_capital && word.chars().count() > 1 && chars.all(char::is_uppercase) {
        return counterpart.to_uppercase();
    }
    let mut letters = counterpart.chars();
    match letters.next() {
        Some(first) if is_capital => first.to_uppercase().chain(letters).collect(),
        _ => counterpart.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mentions(text: &str, group: &str) -> Vec<(String, u32)> {
        let lexicon = Lexicon::built_in();
        let counts = lexicon.mentions(&Words::of(text));
        let categories =
            lexicon.groups().iter().flat_map(|(group, categories)| categories.iter().map(move |c| (group, c)));
        categories
            .zip(counts)
            .filter(|((of, _), count)| *of == group && *count > 0)
            .map(|((_, c), n)| (c.clone(), n))
            .collect()
    }

    #[test]
    fn mentions_are_counted_by_category_singular_and_plural() {
        assert_eq!(mentions("She told her brothers.", "gender"), [("female".into(), 2), ("male".into(), 1)]);
        let regions = mentions("A Kenyan and two Indians in Paris", "region");
        assert_eq!(regions, [("europe".into(), 1), ("south_asia".into(), 1), ("sub_saharan_africa".into(), 1)]);
        let lexicon = Lexicon::built_in();
        let toxic = |text: &str| lexicon.toxic_words(&lexicon.mentions(&Words::of(text)));
        assert_eq!((toxic("You idiots are STUPID."), toxic("You scholars are clever.")), (2, 0));
    }

    #[test]
    fn counterfactuals_exchange_names_pronouns_and_kin_and_keep_the_case() {
        let other = |text: &str| Lexicon::built_in().counterfactual(text);
        assert_eq!(
            other("John gave his wife her book. HE thanked her."),
            Some("Mary gave her husband his book. SHE thanked him.".into())
        );
        assert_eq!(
            other("Fatima told him that the car is hers."),
            Some("Mohammed told her that the car is his.".into())
        );
        assert_eq!(other("I will mark the frank answer 3 + 4 = 7."), None, "a name is capitalised");
        for text in ["She said that he saw his mother.", "Mary and her sons met Tom."] {
            let there = other(text).expect("a gendered text");
            assert_eq!(other(&there).as_deref(), Some(text), "exchanging twice gives the text back: {there}");
        }
    }

    #[test]
    fn a_file_of_lists_is_read_and_a_broken_one_named() {
        let lexicon = Lexicon::parse("[sport]\nball = [\"football\"]\n").expect("lists");
        assert_eq!(lexicon.groups(), [("sport".to_owned(), vec!["ball".to_owned()])]);
        assert_eq!(lexicon.mentions(&Words::of("footballs")), [1]);
        let error = Lexicon::read(Path::new("no/lists.toml")).err().expect("it is missing");
        assert!(format!("{error:#}").contains("no/lists.toml"), "{error:#}");
    }
}
