//! The yield table: what was asked for, what became a record, and why the rest did not. It adds up exactly.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::ledger::RejectedRow;
use crate::records::JsonlReader;

/// One row of the table. `requested = kept + the sum of rejected + pending`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepStats {
    /// Name of the sub-step, as in `rejected.jsonl`.
    pub step: String,
    /// Length of the work list.
    pub requested: usize,
    /// Requests that became a record.
    pub kept: usize,
    /// Requests that did not, by reason.
    pub rejected: BTreeMap<String, usize>,
    /// Requests not answered yet; 0 once the sub-step is complete.
    pub pending: usize,
    /// Tokens of the prompts of all answered requests.
    pub prompt_tokens: usize,
    /// Tokens that the teacher wrote for them.
    pub completion_tokens: usize,
    /// Whether this is a part of a sub-step: a few results say nothing of its yield.
    #[serde(skip)]
    pub is_part: bool,
}

/// Fewest results before a sub-step is judged by its yield.
const MIN_RESULTS: usize = 50;

impl StepStats {
    /// A row with nothing answered yet.
    pub fn new(step: &str, requested: usize) -> Self {
        Self {
            step: step.to_owned(),
            requested,
            kept: 0,
            rejected: BTreeMap::new(),
            pending: requested,
            prompt_tokens: 0,
            completion_tokens: 0,
            is_part: false,
        }
    }

    /// Adds the row of a part of this sub-step.
    pub fn add(&mut self, part: &StepStats) {
        self.kept += part.kept;
        self.pending -= part.decided();
        for (reason, count) in &part.rejected {
            *self.rejected.entry(reason.clone()).or_default() += count;
        }
        self.prompt_tokens += part.prompt_tokens;
        self.completion_tokens += part.completion_tokens;
    }

    /// Requests answered, well or badly.
    pub fn decided(&self) -> usize {
        self.requested - self.pending
    }

    /// Counts one answered request; `reason` is `None` for a record.
    pub fn count(&mut self, reason: Option<&str>, prompt_tokens: usize, completion_tokens: usize) {
        debug_assert!(self.pending > 0, "more results than requests in `{}`", self.step);
        self.pending -= 1;
        match reason {
            None => self.kept += 1,
            Some(reason) => *self.rejected.entry(reason.to_owned()).or_default() += 1,
        }
        self.prompt_tokens += prompt_tokens;
        self.completion_tokens += completion_tokens;
    }

    /// Whether it is time to judge and the yield is under its floor: after the first 50 results or 5 % of the work
    /// list, whichever is more, and at the end; a part with fewer results is judged with the others.
    pub fn is_under(&self, min_yield: f64) -> bool {
        let early = MIN_RESULTS.max(self.requested.div_ceil(20));
        let decided = self.decided();
        let due = decided == early || self.pending == 0 && (!self.is_part || decided >= MIN_RESULTS);
        due && decided > 0 && (self.kept as f64) < min_yield * decided as f64
    }

    /// Fails when the yield is under its floor, with the commonest reasons and an example of each.
    pub fn check(&self, min_yield: f64, rejected_file: &Path) -> Result<()> {
        if !self.is_under(min_yield) {
            return Ok(());
        }
        let examples = examples(&self.step, rejected_file)?;
        let mut reasons: Vec<_> = self.rejected.iter().collect();
        reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(**count), (*reason).clone()));
        let listed: Vec<String> = reasons
            .into_iter()
            .take(3)
            .map(|(reason, count)| match examples.get(reason) {
                Some(example) if !example.is_empty() => format!("{count} {reason} (such as: {example})"),
                _ => format!("{count} {reason}"),
            })
            .collect();
        bail!(
            "only {} of the first {} results of `{}` could be used, under `generate.min_yield` = {min_yield}: {}; \
             everything made so far is kept (all rejections: `{}`); take a stronger teacher, other prompts or more \
             `max_new_tokens` with another --run-dir, or lower `generate.min_yield` and run the same command again",
            self.kept,
            self.decided(),
            self.step,
            listed.join("; "),
            rejected_file.display()
        )
    }
}

/// The first evidence of every reason of a sub-step, on one line and short.
fn examples(step: &str, rejected_file: &Path) -> Result<BTreeMap<String, String>> {
    let mut examples = BTreeMap::new();
    for row in JsonlReader::<RejectedRow>::open(rejected_file)? {
        let row = row?;
        if row.stage == step {
            let short: String = super::text::one_line(&row.evidence).chars().take(160).collect();
            examples.entry(row.reason).or_insert(short);
        }
    }
    Ok(examples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_adds_up_and_the_yield_is_judged_early_and_at_the_end() {
        let mut stats = StepStats::new("questions", 2000);
        let mut judged_low = Vec::new();
        for i in 0..2000 {
            stats.count((i % 4 != 0).then_some("malformed_json"), 10, 1);
            if stats.is_under(0.3) {
                judged_low.push(stats.decided());
            }
        }
        assert_eq!(judged_low, [100, 2000]);
        assert_eq!(stats.requested, stats.kept + stats.rejected.values().sum::<usize>() + stats.pending);
        assert_eq!((stats.kept, stats.prompt_tokens, stats.completion_tokens), (500, 20_000, 2000));
        assert!(!stats.is_under(0.25), "exactly the floor is enough");
        assert!(!StepStats::new("questions", 0).is_under(1.0), "nothing asked for, nothing missed");
    }
}
