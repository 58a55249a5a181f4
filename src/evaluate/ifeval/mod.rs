//! IFEval's verdicts: does a response follow the instructions of its prompt?
//!
//! 25 kinds of instructions that a program can check, strictly and loosely, as lm-evaluation-harness's `ifeval`
//! (version 4) checks them. Sentences, word tokens and languages follow the libraries that it uses, from data files of
//! theirs beside the prompts. Two prompts of the set ask for a letter that is none; the harness draws a random one
//! there, and here the given character is counted.
//!
//! **Source**: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911.

mod instructions;
mod language;
mod punkt;
mod python;
#[cfg(test)]
mod tests;
mod words;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::{
    instructions::{Instruction, Resources},
    language::LanguageDetector,
    punkt::Punkt,
};
use super::data;

/// File of the sentence splitter's counts under the data folder, without `.gz`.
const PUNKT: &str = "ifeval/punkt_english.json";

/// Files that [`Checker::load`] reads under the data folder, each with or without `.gz`.
pub const FILES: [&str; 2] = [PUNKT, language::PROFILES];

/// Checks responses. Holds the data of the sentence splitter and the language profiles, some 20 MB.
#[derive(Debug)]
pub struct Checker {
    punkt: Punkt,
    detector: LanguageDetector,
}

/// Which instructions of a prompt a response follows, in the prompt's order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdicts {
    /// As the response stands.
    pub strict: Vec<bool>,
    /// In any of eight variants: without asterisks, without the first line, the last line, both.
    pub loose: Vec<bool>,
}

/// The four accuracies of the benchmark, as fractions; 0 where there is nothing to count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracies {
    /// Prompts of which every instruction is followed strictly.
    pub prompt_level_strict_acc: f64,
    /// Instructions that are followed strictly.
    pub inst_level_strict_acc: f64,
    /// Prompts of which every instruction is followed loosely.
    pub prompt_level_loose_acc: f64,
    /// Instructions that are followed loosely.
    pub inst_level_loose_acc: f64,
}

impl Checker {
    /// Reads [`FILES`] under a data folder.
    ///
    /// **Errors**: name the file.
    pub fn load(data_dir: &Path) -> Result<Self> {
        let rows = data::read_rows(data_dir, PUNKT)?;
        let punkt = data::documents(rows, PUNKT, |row| {
            serde_json::from_value(row)
                .context("expected `sentence_starters`, `abbrev_types`, `collocations` and `ortho_context`")
        })?;
        let punkt = punkt.into_iter().next().with_context(|| format!("`{PUNKT}` is empty"))?;
        Ok(Self { punkt, detector: LanguageDetector::load(data_dir)? })
    }

    /// The verdicts on a response to a row of the benchmark.
    ///
    /// **Errors**: the row is not as expected; they name what is missing.
    pub fn verdicts(&self, row: &Value, response: &str) -> Result<Verdicts> {
        let instructions = instructions_of(row)?;
        let resources = Resources { punkt: &self.punkt, detector: &self.detector };
        let follows = |instruction: &Instruction, text: &str| {
            !instructions::is_blank(text) && instruction.is_followed(text, &resources)
        };
        let strict: Vec<bool> = instructions.iter().map(|instruction| follows(instruction, response)).collect();
        let variants = variants(response);
        let loose = instructions
            .iter()
            .zip(&strict)
            .map(|(instruction, strict)| *strict || variants.iter().any(|variant| follows(instruction, variant)))
            .collect();
        Ok(Verdicts { strict, loose })
    }
}

impl Verdicts {
    /// Whether every instruction is followed strictly.
    pub fn all_strict(&self) -> bool {
        self.strict.iter().all(|followed| *followed)
    }

    /// Whether every instruction is followed loosely.
    pub fn all_loose(&self) -> bool {
        self.loose.iter().all(|followed| *followed)
    }
}

impl Accuracies {
    /// Means over prompts and over all instructions of all prompts.
    pub fn of<'a>(verdicts: impl IntoIterator<Item = &'a Verdicts>) -> Self {
        let (mut prompts, mut instructions) = (0usize, 0usize);
        let (mut prompt_hits, mut instruction_hits) = ([0usize; 2], [0usize; 2]);
        for verdict in verdicts {
            prompts += 1;
            instructions += verdict.strict.len();
            for (index, followed) in [&verdict.strict, &verdict.loose].into_iter().enumerate() {
                prompt_hits[index] += usize::from(followed.iter().all(|followed| *followed));
                instruction_hits[index] += followed.iter().filter(|followed| **followed).count();
            }
        }
        let share = |hits: usize, of: usize| if of == 0 { 0.0 } else { hits as f64 / of as f64 };
        Self {
            prompt_level_strict_acc: share(prompt_hits[0], prompts),
            inst_level_strict_acc: share(instruction_hits[0], instructions),
            prompt_level_loose_acc: share(prompt_hits[1], prompts),
            inst_level_loose_acc: share(instruction_hits[1], instructions),
        }
    }
}

fn instructions_of(row: &Value) -> Result<Vec<Instruction>> {
    let ids = row["instruction_id_list"].as_array().context("expected a list under `instruction_id_list`")?;
    let arguments = row["kwargs"].as_array().context("expected a list under `kwargs`")?;
    ensure!(
        ids.len() == arguments.len(),
        "`instruction_id_list` has {} entries and `kwargs` {}, but there must be as many",
        ids.len(),
        arguments.len()
    );
    ids.iter()
        .zip(arguments)
        .map(|(id, arguments)| {
            let id = id.as_str().context("expected strings under `instruction_id_list`")?;
            Instruction::parse(id, arguments).with_context(|| format!("instruction `{id}`"))
        })
        .collect()
}

/// The seven variants of a response that the loose check adds.
fn variants(response: &str) -> Vec<String> {
    let lines: Vec<&str> = response.split('\n').collect();
    let cut =
        |range: std::ops::Range<usize>| python::strip(&lines.get(range).unwrap_or_default().join("\n")).to_owned();
    let cuts = [cut(1..lines.len()), cut(0..lines.len() - 1), cut(1..lines.len() - 1)];
    let without_stars: Vec<String> =
        std::iter::once(response).chain(cuts.iter().map(String::as_str)).map(|text| text.replace('*', "")).collect();
    cuts.into_iter().chain(without_stars).collect()
}
