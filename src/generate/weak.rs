//! More questions where a student is weak: the closed loop's way back into this stage.
//!
//! `glan generate --weak FILE` adds a round to a run. A round gives each named discipline new syllabi (samples of the
//! same prompt that no round has drawn) and asks its questions of those alone. So no combination of class sessions and
//! key concepts is drawn twice, ids cannot collide, and the records of earlier rounds stay as they are: each file's work
//! list is that of the plain stage, followed by round 1, round 2 and so on. `weak.jsonl` holds the rounds; it is part of
//! what the stage reads, so a later `glan generate` goes on with them.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::taxonomy::Discipline;
use crate::{
    config::GenerateConfig,
    error::usage,
    records::{JsonlWriter, read_partial_jsonl},
    seed::record_id,
};

/// The rounds of a run, in the stage's folder.
const FILE: &str = "weak.jsonl";

/// What is read of a file of weak nodes; `evaluate/weak_nodes.json` holds more.
#[derive(Debug, Deserialize)]
struct WeakFile {
    nodes: Vec<WeakNode>,
}

/// How much one discipline needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeakNode {
    /// As the taxonomy names it.
    pub discipline: String,
    /// Questions to add; 0 leaves the discipline as it is.
    pub extra_questions: usize,
}

/// A line of `weak.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Hash of the file that asked for it: the same file again is the same round.
    pub id: String,
    /// The disciplines that get more.
    pub nodes: Vec<WeakNode>,
}

/// The rounds of a run so far, `file`'s included.
///
/// **Errors**: usage, for a file that is missing, damaged, names a discipline that the taxonomy does not have, or asks
/// for nothing.
pub fn rounds(folder: &Path, file: Option<&Path>, disciplines: &[Discipline]) -> Result<Vec<Round>> {
    let path = folder.join(FILE);
    let mut rounds: Vec<Round> = read_partial_jsonl(&path)?;
    let Some(file) = file else { return Ok(rounds) };
    let asked = read(file, disciplines)?;
    if !rounds.iter().any(|round| round.id == asked.id) {
        let mut writer = JsonlWriter::append(&path)?;
        writer.write(&asked)?;
        writer.sync()?;
        rounds.push(asked);
    }
    Ok(rounds)
}

fn read(file: &Path, disciplines: &[Discipline]) -> Result<Round> {
    let shown = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|error| usage(format!("cannot read `--weak {shown}`: {error}; `glan evaluate` makes such a file")))?;
    let parsed: WeakFile = serde_json::from_str(&text).map_err(|error| {
        usage(format!(
            "`{shown}` is not as expected ({{\"nodes\": [{{\"discipline\": NAME, \"extra_questions\": N}}]}}): {error}"
        ))
    })?;
    let mut nodes: Vec<WeakNode> = Vec::new();
    for node in parsed.nodes.into_iter().filter(|node| node.extra_questions > 0) {
        if !disciplines.iter().any(|discipline| discipline.name == node.discipline) {
            return Err(usage(format!(
                "`{shown}` names the discipline `{}`, which the taxonomy lacks",
                node.discipline
            )));
        }
        if nodes.iter().any(|other| other.discipline == node.discipline) {
            return Err(usage(format!("`{shown}` names the discipline `{}` twice; remove one", node.discipline)));
        }
        nodes.push(node);
    }
    if nodes.is_empty() {
        return Err(usage(format!("`{shown}` asks for no extra question; there is nothing to generate")));
    }
    let content = serde_json::to_string(&nodes).context("names and numbers are JSON")?;
    // The whole file, not its nodes alone: the same nodes may be weak again after the next measurement.
    Ok(Round { id: record_id(&["weak", &text, &content]), nodes })
}

/// Which samples of a subject's syllabus belong to which round: for each discipline the first sample of every round
/// that it is in, after those of the plain stage.
pub struct Samples {
    plain: usize,
    /// Per discipline: `(round, first sample, number)`, ascending.
    rounds: HashMap<String, Vec<(usize, usize, usize)>>,
}

impl Samples {
    /// Numbers the samples. A discipline's round gets as many syllabi as keep the questions per syllabus at what the
    /// plain stage asks on average.
    pub fn new(config: &GenerateConfig, rounds: &[Round], num_disciplines: usize) -> Self {
        let plain = config.syllabi_per_subject;
        let even = (config.num_questions / num_disciplines.max(1)).max(1);
        let mut of: HashMap<String, Vec<(usize, usize, usize)>> = HashMap::new();
        for (round, nodes) in rounds.iter().map(|round| &round.nodes).enumerate() {
            for node in nodes {
                let known = of.entry(node.discipline.clone()).or_default();
                let first = known.last().map_or(plain, |(_, first, number)| first + number);
                known.push((round + 1, first, (plain * node.extra_questions).div_ceil(even).max(1)));
            }
        }
        Self { plain, rounds: of }
    }

    /// The samples of a discipline in a round; round 0 is the plain stage.
    pub fn of(&self, discipline: &str, round: usize) -> std::ops::Range<usize> {
        if round == 0 {
            return 0..self.plain;
        }
        let known = self.rounds.get(discipline).and_then(|all| all.iter().find(|(of, _, _)| *of == round));
        known.map_or(0..0, |&(_, first, number)| first..first + number)
    }

    /// The round of a sample.
    pub fn round_of(&self, discipline: &str, sample: usize) -> usize {
        let known = self.rounds.get(discipline).into_iter().flatten();
        known.rev().find(|(_, first, _)| sample >= *first).map_or(0, |(round, _, _)| *round)
    }
}

/// Whether this run was given more than the plain stage.
pub fn summary(rounds: &[Round]) -> Option<String> {
    let last = rounds.last()?;
    let names: Vec<String> =
        last.nodes.iter().map(|node| format!("{} (+{})", node.discipline, node.extra_questions)).collect();
    Some(format!("round {} of extra questions: {}", rounds.len(), names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    fn discipline(name: &str) -> Discipline {
        Discipline { id: name.into(), field: "F".into(), subfield: "S".into(), name: name.into(), weight: 1.0 }
    }

    fn node(discipline: &str, extra_questions: usize) -> WeakNode {
        WeakNode { discipline: discipline.into(), extra_questions }
    }

    #[test]
    fn samples_follow_those_of_earlier_rounds_and_know_their_round() {
        let config = GenerateConfig { num_questions: 100, syllabi_per_subject: 2, ..GenerateConfig::default() };
        let round = |nodes: &[WeakNode]| Round { id: String::new(), nodes: nodes.to_vec() };
        let rounds = [round(&[node("A", 50)]), round(&[node("B", 5)]), round(&[node("A", 75)])];
        // 50 questions per discipline in the plain stage, from two syllabi per subject.
        let samples = Samples::new(&config, &rounds, 2);
        assert_eq!((0..4).map(|round| samples.of("A", round)).collect::<Vec<_>>(), [0..2, 2..4, 0..0, 4..7]);
        assert_eq!((0..4).map(|round| samples.of("B", round)).collect::<Vec<_>>(), [0..2, 0..0, 2..3, 0..0]);
        assert_eq!((0..7).map(|sample| samples.round_of("A", sample)).collect::<Vec<_>>(), [0, 0, 1, 1, 3, 3, 3]);
        assert_eq!(samples.round_of("C", 1), 0);
    }

    #[test]
    fn the_same_file_is_the_same_round_and_another_one_comes_after_it() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("weak_nodes.json");
        let disciplines = [discipline("A"), discipline("B")];
        assert!(rounds(folder.path(), None, &disciplines)?.is_empty());
        let write = |score: f64| {
            let node = |name: &str, extra: usize| serde_json::json!({"discipline": name, "tuned": score, "extra_questions": extra});
            std::fs::write(&file, serde_json::json!({"nodes": [node("A", 0), node("B", 7)]}).to_string())
        };
        write(0.5)?;
        for _ in 0..2 {
            let found = rounds(folder.path(), Some(&file), &disciplines)?;
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].nodes, [node("B", 7)]);
        }
        write(0.6)?;
        assert_eq!(rounds(folder.path(), Some(&file), &disciplines)?.len(), 2);
        assert_eq!(rounds(folder.path(), None, &disciplines)?.len(), 2);
        Ok(())
    }

    #[test]
    fn files_that_ask_for_nothing_that_can_be_done_are_usage_errors() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("weak.json");
        for (text, said) in [
            ("[]", "is not as expected"),
            ("{\"nodes\": [{\"discipline\": \"A\"}]}", "extra_questions"),
            ("{\"nodes\": [{\"discipline\": \"A\", \"extra_questions\": 0}]}", "nothing to generate"),
            ("{\"nodes\": [{\"discipline\": \"C\", \"extra_questions\": 1}]}", "which the taxonomy lacks"),
        ] {
            std::fs::write(&file, text)?;
            let error = rounds(folder.path(), Some(&file), &[discipline("A")]).expect_err(said);
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains(said), "{said}: {error}");
        }
        assert!(!folder.path().join(FILE).exists());
        assert_eq!(exit_code(&rounds(folder.path(), Some(Path::new("nowhere")), &[]).expect_err("no file")), 2);
        Ok(())
    }
}
