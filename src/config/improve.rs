//! `[improve]`: which disciplines are weak, and how much more of them is made. Changes no record of a run; a round of
//! `glan improve` keeps what it was begun with in its `weak_nodes.json`.

use serde::{Deserialize, Serialize};

/// The closed loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImproveConfig {
    /// Share of each discipline's items that weak disciplines are chosen by; the others measure what a round did. The
    /// items that made a discipline look weak would look better the next time even if nothing had changed.
    pub selection_fraction: f64,
    /// Least distance below the other disciplines' score, as a fraction.
    pub margin: f64,
    /// Fewest items to choose by.
    pub min_items: usize,
    /// Share of the chosen disciplines that may be there by chance (Benjamini-Hochberg).
    pub max_false_discovery: f64,
    /// Questions added per weak discipline, as a multiple of the even share of `generate.num_questions`.
    pub growth: f64,
}

impl Default for ImproveConfig {
    fn default() -> Self {
        // A false pick costs some questions and a missed one the whole round: so the rate may be as high as a fifth.
        Self { selection_fraction: 0.5, margin: 0.05, min_items: 8, max_false_discovery: 0.2, growth: 2.0 }
    }
}
