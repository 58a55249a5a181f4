//! Which kept rows go where when that depends on all of them: quotas per discipline, and key concepts held out for the
//! test.
//!
//! Everything is drawn by hashes of ids and concepts, so it depends on which rows there are and not on their order.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};

use super::{
    filter::Reason,
    normalize::{hash_word, mix},
    split::{Split, fraction_of},
};
use crate::{config::CurateConfig, seed};

/// What decides about a row: a few hashes.
pub struct KeptRow {
    /// Its place in a random order of all rows.
    draw: u64,
    /// Its place between 0 and 1 for the split.
    fraction: f64,
    discipline: String,
    /// Discipline, subject and concept, hashed together.
    concepts: Vec<u64>,
}

impl KeptRow {
    /// Of the columns of a row.
    pub fn of(id: &str, columns: &Map<String, Value>, run_seed: u64) -> Self {
        let text = |key: &str| columns.get(key).and_then(Value::as_str).unwrap_or_default();
        let scope = hash_word(text("discipline")) ^ mix(hash_word(text("subject")));
        let concepts = columns.get("key_concepts").and_then(Value::as_array);
        let concepts = concepts.into_iter().flatten().filter_map(Value::as_str);
        Self {
            draw: seed::derive(run_seed, "curate.plan", id),
            fraction: fraction_of(id, run_seed),
            discipline: text("discipline").to_owned(),
            concepts: concepts.map(|concept| mix(scope ^ mix(hash_word(concept)))).collect(),
        }
    }
}

/// What becomes of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// It is written there.
    Write(Split),
    /// It is not used, for this reason and on this evidence.
    Reject(Reason, String),
}

/// All kept rows, in order.
#[derive(Default)]
pub struct Plan {
    rows: Vec<KeptRow>,
}

impl Plan {
    /// Whether a row's fate depends on the others.
    pub fn is_needed(config: &CurateConfig) -> bool {
        config.max_rows_per_discipline > 0 || config.test_per_discipline > 0
    }

    /// Adds the next row.
    pub fn push(&mut self, row: KeptRow) {
        self.rows.push(row);
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The fate of every row, in order.
    pub fn decide(&self, config: &CurateConfig, run_seed: u64) -> Vec<Fate> {
        let mut by_discipline: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (row, kept) in self.rows.iter().enumerate() {
            by_discipline.entry(&kept.discipline).or_default().push(row);
        }
        let mut fates = vec![Fate::Write(Split::Train); self.rows.len()];
        for (discipline, rows) in &mut by_discipline {
            rows.sort_by_key(|&row| (self.rows[row].draw, row));
            let test =
                if config.test_per_discipline > 0 { self.hold_out(rows, config, run_seed, &mut fates) } else { 0 };
            let mut room = match config.max_rows_per_discipline {
                0 => usize::MAX,
                most => most.saturating_sub(test),
            };
            for &row in rows.iter() {
                if fates[row] != Fate::Write(Split::Train) {
                    continue;
                }
                if room == 0 {
                    let most = config.max_rows_per_discipline;
                    fates[row] = Fate::Reject(Reason::Quota, format!("`{discipline}` has its {most} rows"));
                    continue;
                }
                room -= 1;
                let kept = &self.rows[row];
                fates[row] = Fate::Write(match config.test_per_discipline {
                    0 => Split::at(kept.fraction, config),
                    _ if kept.fraction < config.valid_fraction => Split::Valid,
                    _ => Split::Train,
                });
            }
        }
        fates
    }

    /// Draws concepts of one discipline until enough rows have one of them; these are its test, and what else has one
    /// is not used. Rows without concepts are a concept each. Returns the number of test rows.
    fn hold_out(&self, rows: &[usize], config: &CurateConfig, run_seed: u64, fates: &mut [Fate]) -> usize {
        let own = |row: usize| match self.rows[row].concepts.as_slice() {
            [] => vec![self.rows[row].draw],
            concepts => concepts.to_vec(),
        };
        let mut rows_of: HashMap<u64, Vec<usize>> = HashMap::new();
        for &row in rows {
            own(row).into_iter().for_each(|concept| rows_of.entry(concept).or_default().push(row));
        }
        let mut concepts: Vec<u64> = rows_of.keys().copied().collect();
        concepts.sort_by_key(|&concept| (mix(concept ^ run_seed), concept));
        // Half of a discipline's rows are its students'.
        let wanted = config.test_per_discipline.min(rows.len() / 2);
        let mut held: HashSet<usize> = HashSet::new();
        for concept in concepts {
            if held.len() >= wanted {
                break;
            }
            held.extend(&rows_of[&concept]);
        }
        let mut test = 0;
        for &row in rows.iter().filter(|row| held.contains(row)) {
            if test < wanted {
                test += 1;
                fates[row] = Fate::Write(Split::Test);
            } else {
                fates[row] = Fate::Reject(Reason::HeldOut, "has a key concept of the test rows".into());
            }
        }
        test
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(rows: usize) -> Plan {
        let mut plan = Plan::default();
        for row in 0..rows {
            let columns = json!({
                "discipline": if row % 4 == 0 { "Music" } else { "Physics" }, "subject": "S",
                "key_concepts": [format!("c{}", row % 37), format!("d{}", row % 11)],
            });
            let columns = columns.as_object().expect("an object");
            plan.push(KeptRow::of(&row.to_string(), columns, 3));
        }
        plan
    }

    #[test]
    fn no_concept_of_the_test_is_trained_and_each_discipline_has_its_number() {
        let config = CurateConfig { test_per_discipline: 20, valid_fraction: 0.1, ..CurateConfig::default() };
        let plan = plan(2000);
        let fates = plan.decide(&config, 5);
        let concepts = |split: Split| -> HashSet<u64> {
            let rows = plan.rows.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Write(split));
            rows.flat_map(|(row, _)| row.concepts.clone()).collect()
        };
        let count = |discipline: &str, split: Split| {
            plan.rows
                .iter()
                .zip(&fates)
                .filter(|(row, fate)| row.discipline == discipline && **fate == Fate::Write(split))
                .count()
        };
        assert_eq!((count("Music", Split::Test), count("Physics", Split::Test)), (20, 20));
        assert!(count("Music", Split::Valid) > 0 && count("Physics", Split::Train) > 200);
        let held: HashSet<u64> = plan
            .rows
            .iter()
            .zip(&fates)
            .filter(|(_, fate)| matches!(fate, Fate::Reject(Reason::HeldOut, _)))
            .flat_map(|(row, _)| row.concepts.clone())
            .collect();
        assert!(!held.is_empty(), "what shares a concept with the test is left out");
        let trained: HashSet<u64> = concepts(Split::Train).union(&concepts(Split::Valid)).copied().collect();
        let test_only: Vec<u64> = concepts(Split::Test).difference(&trained).copied().collect();
        assert!(!test_only.is_empty(), "whole concepts are held out");
        for (row, _) in plan.rows.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Write(Split::Test)) {
            assert!(
                row.concepts.iter().any(|concept| !trained.contains(concept)),
                "a test row without a concept of its own"
            );
        }
    }

    #[test]
    fn a_quota_caps_each_discipline_and_the_order_of_rows_changes_nothing() {
        let config = CurateConfig { max_rows_per_discipline: 100, ..CurateConfig::default() };
        let plan = plan(1000);
        let fates = plan.decide(&config, 5);
        let written = |discipline: &str| {
            plan.rows
                .iter()
                .zip(&fates)
                .filter(|(row, fate)| row.discipline == discipline && matches!(fate, Fate::Write(_)))
                .count()
        };
        assert_eq!((written("Music"), written("Physics")), (100, 100));
        let mut reversed = Plan { rows: plan.rows };
        reversed.rows.reverse();
        let mut again = reversed.decide(&config, 5);
        again.reverse();
        assert_eq!(fates, again);
    }
}
