//! The audit's section: what the rows were like before and after each filter, from `curate/audit.json`.

use std::collections::BTreeMap;

use minijinja::Value as Safe;
use serde::{Deserialize, Serialize};

use super::charts::{self, grouped};
use crate::{records, run_dir::RunDir};

/// Most categories of a picture, most mentioned first.
const MAX_CATEGORIES: usize = 12;

/// `curate/audit.json`, as far as the page uses it.
#[derive(Debug, Deserialize)]
struct Audit {
    stages: Vec<Stage>,
}

#[derive(Debug, Deserialize)]
struct Stage {
    stage: String,
    rows: usize,
    mean_words: f64,
    ngram_diversity: f64,
    compression_ratio: f64,
    self_repetition: f64,
    self_bleu: f64,
    vendi_score: f64,
    vendi_rows: usize,
    nearest_neighbour: f64,
    cluster_entropy: f64,
    coverage: Coverage,
    representation: BTreeMap<String, Representation>,
}

#[derive(Debug, Deserialize)]
struct Coverage {
    disciplines: usize,
    disciplines_entropy: f64,
    subjects_share: f64,
    key_concepts_share: f64,
}

#[derive(Debug, Deserialize)]
struct Representation {
    entropy: f64,
    categories: BTreeMap<String, Mentions>,
}

#[derive(Debug, Deserialize)]
struct Mentions {
    rows: u64,
    share: f64,
}

/// What the template needs.
#[derive(Debug, Serialize)]
pub struct Section {
    stages: Vec<StageRow>,
    groups: Vec<Group>,
    note: String,
}

#[derive(Debug, Serialize)]
struct StageRow {
    stage: String,
    rows: String,
    /// Measures in the order of the table's head.
    measures: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Group {
    name: String,
    summary: String,
    bars: Safe,
}

/// The section; `None` where curation has not audited anything.
pub fn section(run_dir: &RunDir) -> Option<Section> {
    let audit: Audit = records::read_json(&run_dir.stage_file("curate", "audit.json")).ok()?;
    let (first, last) = (audit.stages.first()?, audit.stages.last()?);
    if first.rows == 0 {
        return None;
    }
    // A filter that removed nothing has nothing to show.
    let mut shown: Vec<&Stage> = Vec::new();
    for stage in &audit.stages {
        if shown.last().is_none_or(|before| before.rows != stage.rows || stage.stage == "written") {
            shown.push(stage);
        }
    }
    Some(Section {
        stages: shown.into_iter().map(stage_row).collect(),
        groups: first.representation.keys().filter_map(|name| group(name, first, last)).collect(),
        note: format!(
            "Compression ratio, self-repetition, Self-BLEU, neighbours and clusters are of a sample of the rows, the Vendi \
             score of {} of it. Lists of words find mentions, not attitudes.",
            first.vendi_rows
        ),
    })
}

fn stage_row(stage: &Stage) -> StageRow {
    let Coverage { disciplines, disciplines_entropy, subjects_share, key_concepts_share } = &stage.coverage;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    StageRow {
        stage: stage.stage.replace('_', " "),
        rows: grouped(stage.rows),
        measures: vec![
            format!("{:.1}", stage.mean_words),
            format!("{:.3}", stage.ngram_diversity),
            format!("{:.2}", stage.compression_ratio),
            format!("{:.2}", stage.self_repetition),
            format!("{:.3}", stage.self_bleu),
            format!("{:.1}", stage.vendi_score),
            format!("{:.3}", stage.nearest_neighbour),
            format!("{:.3}", stage.cluster_entropy),
            grouped(*disciplines),
            format!("{disciplines_entropy:.3}"),
            percent(*subjects_share),
            percent(*key_concepts_share),
        ],
    }
}

/// Shares of one group's categories, before above and after below; `None` where nothing is mentioned.
fn group(name: &str, first: &Stage, last: &Stage) -> Option<Group> {
    let (before, after) = (first.representation.get(name)?, last.representation.get(name));
    let rows = |stage: Option<&Representation>| {
        stage.map_or(0, |stage| stage.categories.values().map(|mentions| mentions.rows).sum::<u64>()) as usize
    };
    if rows(Some(before)) == 0 {
        return None;
    }
    let share = |category: &str| after.and_then(|after| after.categories.get(category)).map_or(0.0, |it| it.share);
    let mut categories: Vec<(String, f64, f64)> = before
        .categories
        .iter()
        .filter(|(category, mentions)| mentions.share > 0.0 || share(category) > 0.0)
        .map(|(category, mentions)| (category.replace('_', " "), mentions.share, share(category)))
        .collect();
    categories.sort_by(|left, right| right.1.total_cmp(&left.1).then_with(|| left.0.cmp(&right.0)));
    categories.truncate(MAX_CATEGORIES);
    Some(Group {
        name: name.replace('_', " "),
        summary: format!(
            "{} mentions by row before, {} after; evenness {:.3} before, {:.3} after.",
            grouped(rows(Some(before))),
            grouped(rows(after)),
            before.entropy,
            after.map_or(0.0, |after| after.entropy)
        ),
        bars: Safe::from_safe_string(charts::paired_bars(&categories)),
    })
}
