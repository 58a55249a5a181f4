//! `glan taxonomy report`: what a taxonomy leans towards, before anything is generated.
//!
//! Shares of the questions by field, and names that speak of a region, a religion or a language by word lists
//! (`configs/lexicons/taxonomy.toml`): which are named how often, and which are not at all.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use super::taxonomy::{Discipline, Taxonomy};
use crate::config::Balance;

/// The lists that the program brings along.
const BUILT_IN: &str = include_str!("../../configs/lexicons/taxonomy.toml");

/// Group -> category -> words and phrases, in lower case.
type Lists = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Skew {
    /// Nodes of each level.
    pub nodes: [usize; 3],
    /// Fields, the largest share first.
    pub fields: Vec<Part>,
    /// Sub-fields, the largest share first.
    pub subfields: Vec<Part>,
    /// `exp` of the entropy of the fields' shares: so many fields of equal share would be as even.
    pub effective_fields: f64,
    /// By group of word lists.
    pub groups: Vec<Group>,
}

/// A part of the taxonomy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// Of the node, or of the category.
    pub name: String,
    /// Its disciplines.
    pub disciplines: usize,
    /// Its share of all questions.
    pub share: f64,
}

/// Disciplines whose names (or those above them) speak of a category.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// `region`, `religion` or `language`, or what the lists have.
    pub name: String,
    /// Categories that are named, the largest share first.
    pub named: Vec<Part>,
    /// Categories that no discipline speaks of.
    pub missing: Vec<String>,
    /// Share of the questions of disciplines that speak of none.
    pub neutral: f64,
}

impl Skew {
    /// Measures a taxonomy; `lists` is a file of word lists (`None`: the built-in ones).
    ///
    /// **Errors**: the file is missing or not such lists; quotas and caps that cannot hold.
    pub fn of(taxonomy: &Taxonomy, balance: Balance, lists: Option<&Path>) -> Result<Self> {
        let lists = match lists {
            None => toml::from_str::<Lists>(BUILT_IN).context("the built-in lists are well-formed")?,
            Some(path) => {
                let context = || format!("`{}` holds no word lists ([group] with category = [words])", path.display());
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
                toml::from_str(&text).with_context(context)?
            }
        };
        let leaves = taxonomy.disciplines(balance)?;
        let whole: f64 = leaves.iter().map(|leaf| leaf.weight).sum();
        let fields = parts(&leaves, whole, |leaf| leaf.field.clone());
        let entropy: f64 = fields.iter().map(|field| -field.share * field.share.ln()).sum();
        Ok(Self {
            nodes: [fields.len(), taxonomy.fields.iter().map(|field| field.subfields.len()).sum(), leaves.len()],
            subfields: parts(&leaves, whole, |leaf| format!("{} > {}", leaf.field, leaf.subfield)),
            fields,
            effective_fields: entropy.exp(),
            groups: lists.into_iter().map(|(name, categories)| group(name, categories, &leaves, whole)).collect(),
        })
    }

    /// For people.
    pub fn table(&self) -> String {
        let [fields, subfields, disciplines] = self.nodes;
        let mut text = format!(
            "{fields} fields, {subfields} sub-fields, {disciplines} disciplines; as even as {:.1} fields of equal share\n",
            self.effective_fields
        );
        let mut rows = |title: &str, parts: &[Part]| {
            let _ = writeln!(text, "\n{title:<50} disciplines  questions");
            for part in parts {
                let _ = writeln!(text, "{:<50} {:>11} {:>9.1}%", part.name, part.disciplines, 100.0 * part.share);
            }
        };
        rows("field", &self.fields);
        for group in &self.groups {
            rows(&format!("{} named", group.name), &group.named);
        }
        for group in &self.groups {
            let missing = if group.missing.is_empty() { "none".to_owned() } else { group.missing.join(", ") };
            let _ = write!(
                text,
                "\n{}: {:.1}% of the questions are of disciplines that name none; not named at all: {missing}",
                group.name,
                100.0 * group.neutral
            );
        }
        text
    }
}

/// Leaves put together by a name, the largest share first.
fn parts(leaves: &[Discipline], whole: f64, name_of: impl Fn(&Discipline) -> String) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for leaf in leaves {
        let name = name_of(leaf);
        let place = parts.iter().position(|part| part.name == name).unwrap_or_else(|| {
            parts.push(Part { name, disciplines: 0, share: 0.0 });
            parts.len() - 1
        });
        parts[place].disciplines += 1;
        parts[place].share += leaf.weight / whole;
    }
    // Stable, so that even ones stay in the order of the file.
    parts.sort_by(|a, b| b.share.total_cmp(&a.share));
    parts
}

fn group(name: String, categories: BTreeMap<String, Vec<String>>, leaves: &[Discipline], whole: f64) -> Group {
    let words = |leaf: &Discipline| {
        let names = format!("{} / {} / {}", leaf.field, leaf.subfield, leaf.name).to_lowercase();
        let spaced: String = names.chars().map(|char| if char.is_alphanumeric() { char } else { ' ' }).collect();
        format!(" {} ", spaced.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let texts: Vec<String> = leaves.iter().map(words).collect();
    let speaks = |text: &str, words: &[String]| words.iter().any(|word| text.contains(&format!(" {word} ")));
    let mut named = Vec::new();
    let mut missing = Vec::new();
    let mut is_neutral = vec![true; leaves.len()];
    for (category, words) in categories {
        let mut part = Part { name: category, disciplines: 0, share: 0.0 };
        for (place, leaf) in leaves.iter().enumerate().filter(|(place, _)| speaks(&texts[*place], &words)) {
            part.disciplines += 1;
            part.share += leaf.weight / whole;
            is_neutral[place] = false;
        }
        if part.disciplines > 0 { named.push(part) } else { missing.push(part.name) }
    }
    named.sort_by(|a, b| b.share.total_cmp(&a.share));
    let neutral = leaves.iter().zip(is_neutral).filter(|(_, neutral)| *neutral).map(|(leaf, _)| leaf.weight / whole);
    Group { name, named, missing, neutral: neutral.sum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_taxonomy_s_skew_is_found() -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/taxonomy.toml");
        let taxonomy = Taxonomy::load(&path)?;
        let skew = Skew::of(&taxonomy, Balance::Discipline, None)?;
        assert_eq!(skew.fields[0].name, "Academic: Applied Science");
        assert!((skew.fields.iter().map(|field| field.share).sum::<f64>() - 1.0).abs() < 1e-9);
        let group = |name: &str| skew.groups.iter().find(|group| group.name == name).expect("a group");
        let regions: Vec<_> = group("region").named.iter().map(|part| (part.name.as_str(), part.disciplines)).collect();
        assert_eq!(regions, [("north_america", 2), ("europe", 1)]);
        assert!(group("region").missing.contains(&"east_asia".to_owned()));
        assert_eq!(group("religion").named.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), ["christianity"]);
        assert!(skew.table().contains("not named at all: buddhism"), "{}", skew.table());
        let even = Skew::of(&taxonomy, Balance::Field, None)?;
        assert!(skew.effective_fields < 6.0 && (even.effective_fields - 8.0).abs() < 1e-6, "{}", skew.effective_fields);
        Ok(())
    }
}
