//! From verdicts to numbers: the averaged gap, who wins, and how much the order of the answers decides.

use serde::{Deserialize, Serialize};

use super::questions::{Question, rank};
use crate::{evaluate::stats, seed};

/// The verdicts on one question, `[base, tuned]` scores each.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Verdicts {
    /// With the base model's answer in front.
    pub base_first: Option<[f64; 2]>,
    /// With the tuned model's answer in front.
    pub tuned_first: Option<[f64; 2]>,
}

impl Verdicts {
    /// Both verdicts, where the judge gave both.
    fn both(&self) -> Option<[[f64; 2]; 2]> {
        Some([self.base_first?, self.tuned_first?])
    }

    /// `[base, tuned]`, averaged over both orders; `None` where one is missing, because one order alone is biased.
    pub fn averaged(&self) -> Option<[f64; 2]> {
        let [first, second] = self.both()?;
        Some([0, 1].map(|side| (first[side] + second[side]) / 2.0))
    }
}

/// Scores of some questions. Scores are the judge's, 1 to 10; shares are fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// The column, such as `discipline`; empty for all questions.
    pub by: String,
    /// Its value, such as `Physics`; empty for all questions.
    pub name: String,
    /// Questions that were judged in both orders.
    pub n: usize,
    /// Average score of the base model.
    pub base: f64,
    /// Average score of the tuned model.
    pub tuned: f64,
    /// Tuned minus base.
    pub gap: f64,
    /// Its standard error.
    pub gap_stderr: Option<f64>,
    /// 95 % bootstrap interval of the gap, by questions.
    pub gap_ci95: Option<[f64; 2]>,
    /// Share of questions on which the tuned model has the higher averaged score.
    pub win: f64,
    /// Share with equal scores.
    pub tie: f64,
    /// Share on which the base model has it.
    pub lose: f64,
}

/// How much the order of the answers decides. A judge without bias has 0 and 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PositionBias {
    /// Share of questions on which the judge prefers one answer in one order and the other one in the other.
    pub flips: f64,
    /// Score of the answer that stands in front, minus that of the other; averaged over both orders.
    pub first_place_advantage: f64,
}

/// Everything that a judge said, summed up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// All questions.
    pub overall: Gap,
    /// By column and value, in the order of columns and names.
    pub groups: Vec<Gap>,
    /// What the order does.
    pub position_bias: PositionBias,
    /// Verdicts that were asked for.
    pub verdicts: usize,
    /// Verdicts without two scores from 1 to 10; their questions do not count.
    pub unparsed: usize,
    /// Questions whose answers do not fit into the judge's context; they do not count.
    pub too_long: usize,
}

/// Sums up the verdicts on questions; those of questions that were too long are `None`.
pub fn summarise(
    questions: &[Question],
    verdicts: &[Option<Verdicts>],
    run_seed: u64,
    bootstrap_iters: usize,
) -> Summary {
    let gap = |by: &str, name: &str| {
        let is_in = |question: &Question| {
            by.is_empty() || question.groups.iter().any(|(column, value)| *column == by && value == name)
        };
        let rows = questions.iter().zip(verdicts).filter(|(question, _)| is_in(question));
        let scores: Vec<[f64; 2]> = rows.filter_map(|(_, verdicts)| (*verdicts)?.averaged()).collect();
        gap(by, name, &scores, run_seed, bootstrap_iters)
    };
    let mut names: Vec<(&str, &str)> = Vec::new();
    for (column, value) in questions.iter().flat_map(|question| &question.groups) {
        if !names.contains(&(column, value)) {
            names.push((column, value));
        }
    }
    // Numbers by their size, all else by the letters.
    let number = |name: &str| name.parse::<f64>().unwrap_or(f64::INFINITY);
    names.sort_by(|a, b| rank(a.0).cmp(&rank(b.0)).then(number(a.1).total_cmp(&number(b.1))).then(a.1.cmp(b.1)));
    let asked: Vec<Verdicts> = verdicts.iter().copied().flatten().collect();
    let missing = |one: &Option<[f64; 2]>| usize::from(one.is_none());
    Summary {
        overall: gap("", ""),
        groups: names.into_iter().map(|(by, name)| gap(by, name)).collect(),
        position_bias: position_bias(&asked),
        verdicts: 2 * asked.len(),
        unparsed: asked.iter().map(|it| missing(&it.base_first) + missing(&it.tuned_first)).sum(),
        too_long: verdicts.len() - asked.len(),
    }
}

fn gap(by: &str, name: &str, scores: &[[f64; 2]], run_seed: u64, bootstrap_iters: usize) -> Gap {
    let [base, tuned] = [0, 1].map(|side| scores.iter().map(|pair| pair[side]).collect::<Vec<f64>>());
    let differences: Vec<f64> = scores.iter().map(|pair| pair[1] - pair[0]).collect();
    let (mean, gap_stderr) = stats::mean_stderr(&differences);
    let share = |wanted: fn(&f64) -> bool| {
        differences.iter().filter(|difference| wanted(difference)).count() as f64 / scores.len().max(1) as f64
    };
    let mut random = seed::stream(run_seed, "evaluate.judge", &format!("bootstrap {by} {name}"));
    Gap {
        by: by.to_owned(),
        name: name.to_owned(),
        n: scores.len(),
        base: stats::mean_stderr(&base).0,
        tuned: stats::mean_stderr(&tuned).0,
        gap: mean,
        gap_stderr,
        gap_ci95: stats::paired_bootstrap(&base, &tuned, bootstrap_iters, &mut random),
        win: share(|difference| *difference > 0.0),
        tie: share(|difference| *difference == 0.0),
        lose: share(|difference| *difference < 0.0),
    }
}

fn position_bias(verdicts: &[Verdicts]) -> PositionBias {
    let both: Vec<[[f64; 2]; 2]> = verdicts.iter().filter_map(Verdicts::both).collect();
    let count = both.len().max(1) as f64;
    // Opposite signs: each order has a winner, and not the same one.
    let flips = both.iter().filter(|[first, second]| (first[1] - first[0]) * (second[1] - second[0]) < 0.0).count();
    let advantage: f64 =
        both.iter().map(|[first, second]| ((first[0] - first[1]) + (second[1] - second[0])) / 2.0).sum();
    PositionBias { flips: flips as f64 / count, first_place_advantage: advantage / count }
}

/// The summary as a table for people.
pub fn table(name: &str, judge: &str, summary: &Summary) -> String {
    let header = ["", "n", "base", "tuned", "gap", "95 %", "win", "tie", "lose"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for gap in std::iter::once(&summary.overall).chain(&summary.groups) {
        let label = if gap.by.is_empty() { name.to_owned() } else { format!("{}: {}", gap.by, gap.name) };
        let interval = gap.gap_ci95.map_or_else(|| "-".to_owned(), |[low, high]| format!("{low:+.2} to {high:+.2}"));
        let percent = |share: f64| format!("{:.1}%", 100.0 * share);
        let mut row = vec![label, gap.n.to_string()];
        row.extend([gap.base, gap.tuned].map(|score| format!("{score:.2}")));
        row.extend([format!("{:+.2}", gap.gap), interval, percent(gap.win), percent(gap.tie), percent(gap.lose)]);
        rows.push(row);
    }
    let PositionBias { flips, first_place_advantage } = summary.position_bias;
    format!(
        "{}\njudged by {judge} in both orders; the order decides {:.1}% of the questions, the first place is worth \
         {first_place_advantage:+.2}; {} of {} verdicts without scores, {} questions too long",
        crate::evaluate::table::align(&rows, 1).join("\n"),
        100.0 * flips,
        summary.unparsed,
        summary.verdicts,
        summary.too_long
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language_model::Message;

    fn asked(discipline: &str) -> Question {
        let groups = vec![("discipline", discipline.to_owned())];
        Question { row: serde_json::Value::Null, turns: vec![Message::user("Q")], groups }
    }

    fn both(base_first: [f64; 2], tuned_first: [f64; 2]) -> Option<Verdicts> {
        Some(Verdicts { base_first: Some(base_first), tuned_first: Some(tuned_first) })
    }

    #[test]
    fn a_judge_that_prefers_the_first_place_gives_no_gap_and_full_bias() {
        let questions = [asked("A"), asked("B")];
        let verdicts = [both([9.0, 5.0], [5.0, 9.0]); 2];
        let summary = summarise(&questions, &verdicts, 0, 100);
        assert_eq!((summary.overall.gap, summary.overall.tie), (0.0, 1.0));
        assert_eq!(summary.overall.gap_ci95, Some([0.0, 0.0]));
        assert_eq!(summary.position_bias, PositionBias { flips: 1.0, first_place_advantage: 4.0 });
    }

    #[test]
    fn gaps_are_averaged_over_orders_and_by_group_and_half_verdicts_do_not_count() {
        let questions = ["B", "A", "A", "A", "A"].map(asked);
        let half = Some(Verdicts { base_first: Some([1.0, 10.0]), tuned_first: None });
        let verdicts =
            [both([4.0, 6.0], [5.0, 6.0]), both([7.0, 7.0], [7.0, 7.0]), both([8.0, 2.0], [8.0, 4.0]), half, None];
        let summary = summarise(&questions, &verdicts, 0, 200);
        assert_eq!((summary.verdicts, summary.unparsed, summary.too_long), (8, 1, 1));
        let rows: Vec<_> = summary.groups.iter().map(|row| (row.name.as_str(), row.n, row.gap)).collect();
        assert_eq!(rows, [("A", 2, -2.5), ("B", 1, 1.5)]);
        assert_eq!((summary.overall.n, summary.overall.base), (3, (4.5 + 7.0 + 8.0) / 3.0));
        let third = 1.0 / 3.0;
        assert_eq!((summary.overall.win, summary.overall.tie, summary.overall.lose), (third, third, third));
        assert_eq!(summary.position_bias.flips, 0.0);
        // ((-2 + 1) + (0 + 0) + (6 - 4)) / 2 over three questions.
        assert!((summary.position_bias.first_place_advantage - 1.0 / 6.0).abs() < 1e-12);
        let shown = table("glan_test", "J", &summary);
        assert!(shown.contains("discipline: A") && shown.contains("1 of 8 verdicts without scores"), "{shown}");
    }
}
