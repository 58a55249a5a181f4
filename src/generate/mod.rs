//! Stage 1, `generate`: taxonomy to question-answer pairs (GLAN's Algorithm 1).
//!
//! *Reads* the taxonomy, the prompts, and with `--weak` a file of weak disciplines. *Writes* `generate/`: `taxonomy.json`, `prompts.json`, `teacher.json` (and `answerer.json`),
//! `subjects_raw.jsonl` and `subjects.jsonl`, `syllabi.jsonl`, `questions.jsonl`, `answers.jsonl` (and the drafts of the
//! first two, where asked for in two turns; the files of `refine.rs`, where more is wanted of the answers), `usage.jsonl`, `stats.json`. *Rejects* replies that cannot be used, one
//! line each in `rejected.jsonl`, and fails when too many are. *Resumes* at the first request that is not on disk; the
//! teacher is loaded only when there is one.

mod answers;
mod batch;
mod branch;
mod combos;
mod consistency;
mod cross;
mod ledger;
mod pilot;
mod plan;
mod prompts;
mod questions;
mod refine;
mod review;
mod shards;
mod shares;
mod skew;
mod spare;
mod stats;
mod step;
mod subjects;
mod syllabus;
mod taxonomy;
mod taxonomy_build;
mod taxonomy_file;
mod text;
mod two_step;
mod vary;
mod weak;

#[cfg(test)]
mod bad_teacher_tests;
#[cfg(test)]
mod batch_tests;
#[cfg(test)]
mod long_run_tests;
#[cfg(test)]
mod refine_tests;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod shards_tests;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::{
    answers::Answers,
    branch::Editions,
    prompts::Prompts,
    questions::Questions,
    stats::StepStats,
    step::{Step, run_step},
    syllabus::Syllabus,
    taxonomy::Discipline,
    vary::Variety,
    weak::{Round, Samples},
};
pub use self::{
    batch::{export as export_batch, identity as remote_identity, import as import_batch},
    pilot::Estimate,
    review::{Ballot, Review, Voter},
    shards::{Shard, merge, run as run_shard},
    skew::Skew,
    taxonomy::Taxonomy,
    taxonomy_build::run as build_taxonomy,
};
use crate::{
    config::Config,
    error::usage,
    language_model::{LanguageModel, ModelIdentity},
    records::{self, JsonlReader},
    run_dir::RunDir,
};

/// The sub-steps with requests, in order, and the file of records of each. Those of a taxonomy are in a folder of their own.
const STEPS: [(&str, &str); 19] = [
    ("taxonomy_fields", "fields_raw.jsonl"),
    ("taxonomy_subfields", "subfields_raw.jsonl"),
    ("taxonomy_disciplines", "disciplines_raw.jsonl"),
    ("subject_drafts", "subject_drafts.jsonl"),
    ("subjects", "subjects_raw.jsonl"),
    ("syllabus_drafts", "syllabus_drafts.jsonl"),
    ("syllabi", "syllabi.jsonl"),
    ("questions", "questions.jsonl"),
    ("answers", "answers.jsonl"),
    // In place of the answers, where more is wanted of them (`refine.rs`).
    ("answer_samples", "answer_samples.jsonl"),
    ("critiques", "critiques.jsonl"),
    ("rewrites", "rewrites.jsonl"),
    ("follow_up_questions_1", "follow_up_questions_1.jsonl"),
    ("follow_up_answers_1", "follow_up_answers_1.jsonl"),
    ("follow_up_questions_2", "follow_up_questions_2.jsonl"),
    ("follow_up_answers_2", "follow_up_answers_2.jsonl"),
    ("follow_up_questions_3", "follow_up_questions_3.jsonl"),
    ("follow_up_answers_3", "follow_up_answers_3.jsonl"),
    ("judgements", "judgements.jsonl"),
];

/// What a run is begun with; the rest follows from it.
const FILES: [&str; 7] =
    ["taxonomy.json", "prompts.json", "teacher.json", "answerer.json", "judge.json", "weak.jsonl", "branches.jsonl"];

/// Which model of the run is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Writes everything, but for the answers where there is an answerer.
    Teacher,
    /// Answers the questions.
    Answerer,
    /// Scores the pairs.
    Judge,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Answerer => "answerer",
            Self::Judge => "judge",
        }
    }

    /// The file with the identity of the weights.
    fn file(self) -> &'static str {
        match self {
            Self::Teacher => "teacher.json",
            Self::Answerer => "answerer.json",
            Self::Judge => "judge.json",
        }
    }
}

/// Loads a model only when the stage turns out to need it.
pub type ModelLoader<'a> = dyn FnMut(Role) -> Result<Box<dyn LanguageModel>> + 'a;

/// What a run of the stage is to do beside what is left of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extra<'a> {
    /// A file of weak disciplines, for which more is made.
    pub weak: Option<&'a Path>,
    /// A branch of a finished run that is drawn anew: names from above to below, with `>` between them.
    pub only: Option<&'a str>,
}

/// Runs the stage; a model is loaded only when something is left to do.
///
/// **Errors**: usage for faults of the taxonomy, the prompts and what is in `extra`; a missing input, where the run is in
/// shards that are not merged; a sub-step whose yield is under `generate.min_yield`; and
/// [`crate::error::Failure::Interrupted`]. Whatever was made stays on disk.
pub fn run(config: &Config, run_dir: &RunDir, extra: Extra, load_model: &mut ModelLoader) -> Result<()> {
    let folder = run_dir.stage("generate");
    shards::check_merged(&folder)?;
    run_stage(&mut Stage::new(config, run_dir, folder, None, load_model), extra)
}

/// Runs the stage up to the questions and the pilot, and no further.
///
/// **Errors**: those of [`run`].
pub fn estimate(config: &Config, run_dir: &RunDir, load_model: &mut ModelLoader) -> Result<Estimate> {
    let mut stage = Stage::new(config, run_dir, run_dir.stage("generate"), None, load_model);
    let ground = Ground::load(&mut stage, Extra::default())?;
    let (syllabi, _) = make_syllabi(&mut stage, &ground)?;
    let questions =
        Questions::new(config, (&ground.prompts, &ground.variety), &ground.disciplines, &syllabi, &ground.rounds);
    let estimate = pilot::run(&mut stage, &questions, &ground.prompts, true)?;
    estimate.context("a pilot that was asked for gives an estimate")
}

/// What the stage reads.
struct Ground {
    prompts: Prompts,
    variety: Variety,
    disciplines: Vec<Discipline>,
    rounds: Vec<Round>,
    editions: Editions,
}

impl Ground {
    fn load(stage: &mut Stage, extra: Extra) -> Result<Self> {
        let config = stage.config;
        let taxonomy = taxonomy_of(config, stage.run_dir)?;
        let prompts = Prompts::load(config)?;
        let variety = Variety::load(&config.generate.vary)?;
        let disciplines = taxonomy.disciplines(config.generate.balance)?;
        let _turn = stage.run_dir.turn()?;
        std::fs::create_dir_all(&stage.folder)
            .with_context(|| format!("cannot create folder `{}`", stage.folder.display()))?;
        taxonomy.save(&stage.folder.join("taxonomy.json"))?;
        prompts.save(&stage.folder.join("prompts.json"))?;
        let rounds = weak::rounds(&stage.folder, extra.weak, &disciplines)?;
        let editions = Editions::open(&stage.folder, extra.only, &disciplines, refine::last_step(config))?;
        if let Some(summary) = weak::summary(&rounds) {
            tracing::info!("{summary}");
        }
        stage.stats.counts.fields = taxonomy.fields.len();
        stage.stats.counts.subfields = taxonomy.fields.iter().map(|field| field.subfields.len()).sum();
        stage.stats.counts.disciplines = disciplines.len();
        Ok(Self { prompts, variety, disciplines, rounds, editions })
    }
}

/// The taxonomy of a run: the one that it has built itself (and somebody may have edited), else the configured one; with
/// the configured extensions.
///
/// **Errors**: those of [`Taxonomy::load_extended`].
pub fn taxonomy_of(config: &Config, run_dir: &RunDir) -> Result<Taxonomy> {
    let built = run_dir.stage_file("generate", taxonomy_build::FILE);
    let path = if built.is_file() { &built } else { &config.generate.taxonomy };
    Taxonomy::load_extended(path, &config.generate.extend_taxonomy)
}

/// Subjects and syllabi: those of the plain stage and of each round, and the number of subjects.
fn make_syllabi(stage: &mut Stage, ground: &Ground) -> Result<(Vec<Vec<Syllabus>>, usize)> {
    let Ground { prompts, disciplines, rounds, editions, .. } = ground;
    let subjects = subjects::run(stage, prompts, disciplines, editions)?;
    stage.stats.counts.subjects = subjects.len();
    let samples = Samples::new(&stage.config.generate, rounds, disciplines.len());
    let syllabi = syllabus::run(stage, prompts, &subjects, &samples, (rounds.len(), editions))?;
    let all = syllabi.iter().flatten();
    let sessions = all.clone().flat_map(|syllabus| &syllabus.class_sessions);
    stage.stats.counts.syllabi = all.count();
    stage.stats.counts.class_sessions = sessions.clone().count();
    stage.stats.counts.key_concepts = sessions.map(|session| session.key_concepts.len()).sum();
    stage.syllabi = syllabus::hash(&syllabi)?;
    Ok((syllabi, subjects.len()))
}

/// All sub-steps, of the whole stage or of a shard.
fn run_stage(stage: &mut Stage, extra: Extra) -> Result<()> {
    let config = stage.config;
    let mut ground = Ground::load(stage, extra)?;
    let (syllabi, num_subjects) = make_syllabi(stage, &ground)?;
    let questions =
        Questions::new(config, (&ground.prompts, &ground.variety), &ground.disciplines, &syllabi, &ground.rounds);
    pilot::run(stage, &questions, &ground.prompts, false)?;
    let asked = run_step(stage, &questions)?;
    stage.stats.counts.questions = asked.kept;
    let questions_file = stage.own_file(&questions);
    let answered = if refine::is_on(config) {
        refine::run(stage, &ground.prompts, (questions_file, asked.kept))?
    } else {
        let answers = Answers { config, prompts: &ground.prompts, questions_file, num_questions: asked.kept };
        run_step(stage, &answers)?.kept
    };
    stage.stats.counts.answers = answered;
    stage.save_stats(true)?;
    // A shard may be a small one; the sum is looked at when all are merged.
    if answered == 0 && stage.shard.is_none() {
        bail!(
            "no question-answer pair was made ({} subjects, {} syllabi, {} questions); see `{}`",
            num_subjects,
            stage.stats.counts.syllabi,
            asked.kept,
            stage.folder.join("rejected.jsonl").display()
        );
    }
    if stage.shard.is_none() {
        ground.editions.finish(&stage.folder)?;
    }
    tracing::info!("generate: {} question-answer pairs from {} questions", answered, asked.kept);
    Ok(())
}

/// What the sub-steps share.
struct Stage<'a, 'b> {
    config: &'a Config,
    run_dir: &'a RunDir,
    folder: PathBuf,
    /// `None`: the whole stage.
    shard: Option<Shard>,
    load_model: &'a mut ModelLoader<'b>,
    /// The one that is loaded.
    model: Option<(Role, Box<dyn LanguageModel>)>,
    stats: Stats,
    /// Hash of the syllabi, once they are there.
    syllabi: String,
}

/// `stats.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Stats {
    counts: Counts,
    steps: Vec<StepStats>,
}

/// How many there are of everything that the stage makes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Counts {
    fields: usize,
    subfields: usize,
    disciplines: usize,
    subjects: usize,
    syllabi: usize,
    class_sessions: usize,
    key_concepts: usize,
    questions: usize,
    answers: usize,
}

impl<'a, 'b> Stage<'a, 'b> {
    fn new(
        config: &'a Config,
        run_dir: &'a RunDir,
        folder: PathBuf,
        shard: Option<Shard>,
        load_model: &'a mut ModelLoader<'b>,
    ) -> Self {
        let (stats, syllabi) = (Stats::default(), String::new());
        Self { config, run_dir, folder, shard, load_model, model: None, stats, syllabi }
    }

    /// All records of a finished sub-step, whoever made them.
    fn read<S: Step>(&self, step: &S) -> Result<Vec<S::Record>>
    where
        S::Record: DeserializeOwned,
    {
        let files = match self.shard {
            None => vec![self.folder.join(step.file())],
            Some(shard) => shards::files(&self.folder, shard, step.name(), step.file()),
        };
        let mut records = Vec::new();
        for file in files {
            for record in JsonlReader::open(&file)? {
                records.push(record?);
            }
        }
        Ok(records)
    }

    /// Where this process keeps the records of a sub-step.
    fn own_file<S: Step>(&self, step: &S) -> PathBuf {
        match self.shard {
            None => self.folder.join(step.file()),
            Some(shard) => shards::own_file(&self.folder, shard, step.name(), step.file()),
        }
    }

    /// A model, loaded at the first call; memory holds one at a time.
    ///
    /// **Errors**: usage, when the run was begun with other weights.
    fn model(&mut self, role: Role) -> Result<&mut dyn LanguageModel> {
        if self.model.as_ref().is_none_or(|(loaded, _)| *loaded != role) {
            // Dropped before the next one takes its place.
            self.model = None;
            let model = (self.load_model)(role)?;
            self.check_identity(role, model.identity())?;
            self.model = Some((role, model));
        }
        Ok(self.model.as_mut().expect("it was loaded above").1.as_mut())
    }

    fn check_identity(&self, role: Role, identity: &ModelIdentity) -> Result<()> {
        let _turn = self.run_dir.turn()?;
        let path = self.folder.join(role.file());
        if !path.exists() {
            return records::write_json(&path, identity);
        }
        let begun_with: ModelIdentity = records::read_json(&path)?;
        if (&begun_with.hash, &begun_with.dtype) != (&identity.hash, &identity.dtype) {
            return Err(usage(format!(
                "the {} `{}` ({} {}) is not the one that this run was begun with, `{}` ({} {}); \
                 take another --run-dir, or the first {}",
                role.word(),
                identity.name,
                identity.hash,
                identity.dtype,
                begun_with.name,
                begun_with.hash,
                begun_with.dtype,
                role.word()
            )));
        }
        Ok(())
    }

    fn add_stats(&mut self, stats: StepStats) -> Result<()> {
        self.stats.steps.push(stats);
        self.save_stats(false)
    }

    fn save_stats(&self, finished: bool) -> Result<()> {
        match self.shard {
            None => records::write_json(&self.folder.join("stats.json"), &self.stats),
            Some(shard) => shards::Report::save(&self.folder, shard, &self.stats, &self.syllabi, finished),
        }
    }
}
