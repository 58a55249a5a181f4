//! What the page says: every section as plain values for the template.

use std::collections::BTreeMap;

use minijinja::Value as Safe;
use serde::Serialize;
use serde_json::Value;

use super::{
    artefacts::{self, Comparison, Discipline, Sample},
    audit,
    charts::{self, Bar, Line, grouped},
    improvement,
};
use crate::{config::Config, run_dir::RunDir};

/// Two-sided bounds of a 95 % interval, in standard errors.
const Z95: f64 = 1.96;
/// Below this the paired test calls the difference real.
const SIGNIFICANT: f64 = 0.05;
/// Longest text shown of one turn, in characters.
const MAX_SHOWN_CHARS: usize = 1500;
/// Longest title of an item, in characters.
const MAX_TITLE_CHARS: usize = 110;

/// Everything that the template needs.
#[derive(Debug, Serialize)]
pub struct Page {
    name: String,
    seed: u64,
    teacher: String,
    student: String,
    version: &'static str,
    verdict: Option<VerdictSection>,
    skipped: Vec<String>,
    tiles: Vec<Tile>,
    funnel: Option<Safe>,
    rejects: Vec<Reject>,
    near_duplicates: Option<String>,
    audit: Option<audit::Section>,
    shuffled: bool,
    missing: BTreeMap<&'static str, String>,
    training: Option<TrainingSection>,
    disciplines: Vec<DisciplineRow>,
    improvement: Option<improvement::Section>,
    rows: Vec<RowSample>,
    items: Vec<ItemSample>,
    items_note: String,
}

#[derive(Debug, Serialize)]
struct VerdictSection {
    sentence: String,
    is_better: bool,
    is_clear: bool,
    bars: Safe,
    tasks: Vec<TaskRow>,
}

#[derive(Debug, Serialize)]
struct TaskRow {
    task: String,
    metric: String,
    base: String,
    fewshot: String,
    tuned: String,
    difference: String,
    p_value: String,
    p_holm: String,
    change: &'static str,
    n: String,
}

#[derive(Debug, Serialize)]
struct Tile {
    label: &'static str,
    count: String,
}

#[derive(Debug, Serialize)]
struct Reject {
    stage: String,
    reason: String,
    count: String,
    share: String,
}

#[derive(Debug, Serialize)]
struct TrainingSection {
    summary: String,
    loss: Safe,
    learning_rate: Option<Safe>,
}

#[derive(Debug, Serialize)]
struct DisciplineRow {
    discipline: String,
    rows: String,
    n: String,
    base: String,
    tuned: String,
    base_width: String,
    tuned_width: String,
    is_better: bool,
}

#[derive(Debug, Serialize)]
struct RowSample {
    about: String,
    turns: Vec<(String, String)>,
}

#[derive(Debug, Serialize)]
struct ItemSample {
    outcome: &'static str,
    class: &'static str,
    title: String,
    question: String,
    target: String,
    base: String,
    tuned: String,
}

/// Gathers the page.
pub fn build(config: &Config, run_dir: &RunDir) -> Page {
    let comparison = Comparison::load(run_dir);
    let mut missing = BTreeMap::new();
    let how = |stage: &str| format!("glan {stage} --run-dir {}", run_dir.root().display());
    let curated = artefacts::json(&run_dir.stage_file("curate", "stats.json"));
    let (tiles, funnel) = funnel(run_dir, curated.as_ref());
    if tiles.is_empty() && funnel.is_none() {
        missing.insert("generate", how("generate"));
    }
    if curated.is_none() {
        missing.insert("curate", how("curate"));
    }
    let training = training(run_dir);
    if training.is_none() {
        missing.insert("train", how("train"));
    }
    if comparison.is_none() {
        missing.insert("evaluate", how("evaluate"));
    }
    let (rows, counts) = training_rows(run_dir, config.report.num_samples);
    let (items, items_note) = comparison
        .as_ref()
        .map_or_else(Default::default, |comparison| evaluation_items(run_dir, comparison, config.report.num_samples));
    let root = run_dir.root().canonicalize().unwrap_or_else(|_| run_dir.root().to_owned());
    let or_unset = |name: &str| if name.is_empty() { "not set".to_owned() } else { name.to_owned() };
    Page {
        name: root.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned()),
        seed: config.seed,
        teacher: or_unset(&config.teacher.model),
        student: or_unset(&config.student.model),
        version: env!("CARGO_PKG_VERSION"),
        verdict: comparison.as_ref().map(verdict),
        skipped: comparison
            .iter()
            .flat_map(|all| &all.skipped)
            .map(|task| format!("{}: {}", task.task, task.reason))
            .collect(),
        tiles,
        funnel,
        rejects: rejects(run_dir, curated.as_ref()),
        near_duplicates: curated.as_ref().and_then(near_duplicate_note),
        audit: audit::section(run_dir),
        shuffled: curated.as_ref().is_some_and(|stats| stats["shuffled_answers"] == Value::Bool(true)),
        missing,
        training,
        disciplines: comparison.as_ref().map_or_else(Vec::new, |all| discipline_rows(&all.by_discipline, &counts)),
        improvement: improvement::section(run_dir),
        rows,
        items,
        items_note,
    }
}

fn percent(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}

/// A probability with its relation, as `< 0.0001` or `= 0.0312`.
pub fn p_value(p: f64) -> String {
    if p < 0.0001 { "< 0.0001".into() } else { format!("= {p:.4}") }
}

fn verdict(comparison: &Comparison) -> VerdictSection {
    let verdict = &comparison.verdict;
    let headline = comparison.headline();
    let is_clear = verdict.p_value < SIGNIFICANT;
    let points = 100.0 * (verdict.tuned - verdict.base);
    let how = match (is_clear, points > 0.0) {
        (true, true) => format!("{points:.1} points above the base model"),
        (true, false) => format!("{:.1} points below the base model", -points),
        (false, _) => format!("not clearly different from the base model ({points:+.1} points)"),
    };
    let items = headline.map_or_else(String::new, |task| format!(" of {} items", grouped(task.n)));
    let sentence = format!(
        "On {} the tuned model answers {}{items} correctly, {how} (p {}).",
        verdict.task,
        percent(verdict.tuned),
        p_value(verdict.p_value)
    );
    let error = |stderr: Option<f64>| Z95 * stderr.filter(|stderr| stderr.is_finite()).unwrap_or(0.0);
    let mut bars = vec![Bar {
        label: "base".into(),
        value: verdict.base,
        error: error(headline.and_then(|task| task.base_stderr)),
        class: "base",
    }];
    if let Some(value) = verdict.base_fewshot {
        bars.push(Bar { label: "base, few-shot".into(), value, error: 0.0, class: "fewshot" });
    }
    bars.push(Bar {
        label: "tuned".into(),
        value: verdict.tuned,
        error: error(headline.and_then(|task| task.tuned_stderr)),
        class: "tuned",
    });
    let with_error = |value: f64, stderr: Option<f64>| match stderr {
        Some(stderr) => format!("{:.1} ± {:.1} %", 100.0 * value, 100.0 * Z95 * stderr),
        None => percent(value),
    };
    let tasks = comparison.tasks.iter().map(|task| TaskRow {
        task: task.task.clone(),
        metric: task.metric.clone(),
        base: with_error(task.base, task.base_stderr),
        fewshot: task.base_fewshot.map_or_else(|| "–".into(), percent),
        tuned: with_error(task.tuned, task.tuned_stderr),
        difference: format!("{:+.1}", 100.0 * (task.tuned - task.base)),
        p_value: p_value(task.p_value).trim_start_matches("= ").to_owned(),
        p_holm: task.p_holm.map_or_else(|| "–".into(), |p| p_value(p).trim_start_matches("= ").to_owned()),
        change: match task.change.as_deref() {
            Some("better") => "good",
            Some("worse") => "bad",
            _ => "",
        },
        n: grouped(task.n),
    });
    VerdictSection {
        sentence,
        is_better: points > 0.0,
        is_clear,
        bars: Safe::from_safe_string(charts::percent_bars(&bars)),
        tasks: tasks.collect(),
    }
}

fn funnel(run_dir: &RunDir, curated: Option<&Value>) -> (Vec<Tile>, Option<Safe>) {
    let generated = |name: &str| artefacts::count_rows(&run_dir.stage_file("generate", name));
    let disciplines = artefacts::json(&run_dir.stage_file("generate", "taxonomy.json"))
        .map(|tree| artefacts::count_disciplines(&tree));
    let tiles = [
        ("disciplines", disciplines),
        ("subjects", generated("subjects.jsonl")),
        ("syllabi", generated("syllabi.jsonl")),
    ];
    let tiles = tiles.into_iter().filter_map(|(label, count)| Some(Tile { label, count: grouped(count?) })).collect();
    let kept = |key: &str| curated.and_then(|stats| usize::try_from(stats[key].as_u64()?).ok());
    let split = |name: &str| artefacts::count_rows(&run_dir.stage_file("curate", name));
    let rows: Vec<(String, usize)> = [
        ("questions", generated("questions.jsonl")),
        ("answers", generated("answers.jsonl")),
        ("kept", kept("kept")),
        ("training rows", split("train.jsonl")),
        ("validation rows", split("valid.jsonl")),
        ("test rows", split("test.jsonl")),
    ]
    .into_iter()
    .filter_map(|(label, count)| Some((label.to_owned(), count?)))
    .collect();
    (tiles, (!rows.is_empty()).then(|| Safe::from_safe_string(charts::count_bars(&rows))))
}

/// Reasons of both stages that reject, most frequent first within a step. Shares are of what the step looked at.
fn rejects(run_dir: &RunDir, curated: Option<&Value>) -> Vec<Reject> {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    artefacts::each_row(&run_dir.stage_file("generate", "rejected.jsonl"), |_, row| {
        let step = format!("generate: {}", row["stage"].as_str().unwrap_or("?"));
        *counts.entry((step, row["reason"].as_str().unwrap_or("?").to_owned())).or_default() += 1;
    });
    let mut totals: BTreeMap<String, usize> = BTreeMap::new();
    let stats = artefacts::json(&run_dir.stage_file("generate", "stats.json")).unwrap_or_default();
    let steps = stats.as_array().or_else(|| stats["steps"].as_array());
    for step in steps.into_iter().flatten() {
        if let (Some(name), Some(requested)) = (step["step"].as_str(), step["requested"].as_u64()) {
            totals.insert(format!("generate: {name}"), requested as usize);
        }
    }
    if let Some(stats) = curated {
        totals.insert("curate".into(), stats["rows_in"].as_u64().unwrap_or(0) as usize);
        for (reason, count) in stats["rejected"].as_object().into_iter().flatten() {
            counts.insert(("curate".into(), reason.clone()), count.as_u64().unwrap_or(0) as usize);
        }
    }
    let mut rows: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
    rows.sort_by(|left, right| {
        (left.0.0 == "curate").cmp(&(right.0.0 == "curate")).then(left.0.0.cmp(&right.0.0)).then(right.1.cmp(&left.1))
    });
    rows.into_iter()
        .map(|((stage, reason), count)| Reject {
            share: totals
                .get(&stage)
                .filter(|total| **total > 0)
                .map_or_else(String::new, |total| percent(count as f64 / *total as f64)),
            stage,
            reason: reason.replace('_', " "),
            count: grouped(count),
        })
        .collect()
}

fn near_duplicate_note(stats: &Value) -> Option<String> {
    let near = &stats["near_duplicates"];
    Some(format!(
        "Near-duplicates have a Jaccard similarity of word 3-grams of at least {}; a pair right at that threshold is \
         found with a probability of {}.",
        near["threshold"].as_f64()?,
        percent(near["recall_at_threshold"].as_f64()?)
    ))
}

fn training(run_dir: &RunDir) -> Option<TrainingSection> {
    let metrics = artefacts::metrics(run_dir);
    let last = metrics.last()?;
    let series = |value: fn(&artefacts::Metrics) -> Option<f64>| -> Vec<(f64, f64)> {
        metrics.iter().filter_map(|row| Some((row.step, value(row).filter(|value| value.is_finite())?))).collect()
    };
    let (loss, eval_loss, rate) =
        (series(|row| row.loss), series(|row| row.eval_loss), series(|row| row.learning_rate));
    let mut summary = format!(
        "{} steps, {:.2} epochs, {} tokens.",
        grouped(last.step as usize),
        last.epoch,
        grouped(last.tokens as usize)
    );
    for (name, points) in [("Training", &loss), ("Validation", &eval_loss)] {
        match points.as_slice() {
            [] => {}
            [only] => summary.push_str(&format!(" {name} loss {:.3}.", only.1)),
            [first, .., last] => summary.push_str(&format!(" {name} loss {:.3} → {:.3}.", first.1, last.1)),
        }
    }
    let lines: Vec<Line> = [("training loss", "base", loss), ("validation loss", "tuned", eval_loss)]
        .into_iter()
        .filter(|(_, _, points)| !points.is_empty())
        .map(|(label, class, points)| Line { label: label.into(), class, points })
        .collect();
    let learning_rate = (!rate.is_empty()).then(|| {
        let line = Line { label: "learning rate".into(), class: "fewshot", points: rate };
        Safe::from_safe_string(charts::lines(&[line], "step", 170.0))
    });
    Some(TrainingSection { summary, loss: Safe::from_safe_string(charts::lines(&lines, "step", 300.0)), learning_rate })
}

fn discipline_rows(disciplines: &[Discipline], counts: &BTreeMap<String, usize>) -> Vec<DisciplineRow> {
    disciplines
        .iter()
        .map(|row| DisciplineRow {
            discipline: row.discipline.clone(),
            rows: grouped(counts.get(&row.discipline).copied().unwrap_or(0)),
            n: grouped(row.n),
            base: percent(row.base),
            tuned: percent(row.tuned),
            base_width: format!("{:.1}", 100.0 * row.base.clamp(0.0, 1.0)),
            tuned_width: format!("{:.1}", 100.0 * row.tuned.clamp(0.0, 1.0)),
            is_better: row.tuned >= row.base,
        })
        .collect()
}

/// Rows from all over the training file, and the number of rows per discipline.
fn training_rows(run_dir: &RunDir, wanted: usize) -> (Vec<RowSample>, BTreeMap<String, usize>) {
    let path = run_dir.stage_file("curate", "train.jsonl");
    let total = artefacts::count_rows(&path).unwrap_or(0);
    let picks: std::collections::BTreeSet<usize> =
        (0..wanted.min(total)).map(|number| number * total / wanted.min(total)).collect();
    let (mut samples, mut counts) = (Vec::new(), BTreeMap::new());
    artefacts::each_row(&path, |number, row| {
        if let Some(discipline) = row["discipline"].as_str() {
            *counts.entry(discipline.to_owned()).or_default() += 1;
        }
        if picks.contains(&number) {
            let about: Vec<&str> =
                ["discipline", "subject", "level"].iter().filter_map(|key| row[*key].as_str()).collect();
            let turn = |turn: &Value| {
                let text = |key: &str| turn[key].as_str().unwrap_or_default().to_owned();
                (text("role"), shown(&text("content")))
            };
            let turns = row["messages"].as_array().into_iter().flatten().map(turn).collect();
            samples.push(RowSample { about: about.join(" · "), turns });
        }
    });
    (samples, counts)
}

/// Items of the headline task, taken in turn from those that training mended, broke, left wrong and left right.
fn evaluation_items(run_dir: &RunDir, comparison: &Comparison, wanted: usize) -> (Vec<ItemSample>, String) {
    const OUTCOMES: [(&str, &str); 4] =
        [("mended", "good"), ("broken", "bad"), ("wrong before and after", "bad"), ("right before and after", "good")];
    let Some(headline) = comparison.headline() else { return Default::default() };
    let of = |model| artefacts::samples(run_dir, model, &headline.task, &headline.metric);
    let (base, tuned) = (of("base"), of("tuned"));
    let mut groups: [Vec<(&Sample, &Sample)>; 4] = Default::default();
    for (document, after) in &tuned {
        let Some(before) = base.get(document) else { continue };
        let group = match (before.is_right, after.is_right) {
            (false, true) => 0,
            (true, false) => 1,
            (false, false) => 2,
            (true, true) => 3,
        };
        groups[group].push((before, after));
    }
    let total: usize = groups.iter().map(Vec::len).sum();
    if total == 0 {
        return Default::default();
    }
    let counted: Vec<String> =
        groups.iter().zip(OUTCOMES).map(|(group, (name, _))| format!("{} {name}", grouped(group.len()))).collect();
    let note = format!("Of {} items of {}: {}.", grouped(total), headline.task, counted.join(", "));
    let mut items = Vec::new();
    for round in 0..wanted {
        for (group, (outcome, class)) in groups.iter().zip(OUTCOMES) {
            if let Some((before, after)) = group.get(round).filter(|_| items.len() < wanted) {
                items.push(ItemSample {
                    outcome,
                    class,
                    title: cut(after.question.lines().next().unwrap_or_default(), MAX_TITLE_CHARS),
                    question: shown(&after.question),
                    target: shown(&after.target),
                    base: shown(&before.answer),
                    tuned: shown(&after.answer),
                });
            }
        }
    }
    (items, note)
}

/// A text cut to what one reads.
fn shown(text: &str) -> String {
    cut(text.trim(), MAX_SHOWN_CHARS)
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{} …", text[..end].trim_end()),
        None => text.to_owned(),
    }
}
