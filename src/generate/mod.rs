//! Stage 1, `generate`: taxonomy to question-answer pairs (GLAN's Algorithm 1).
//!
//! *Reads* the taxonomy, the prompts, and with `--weak` a file of weak disciplines. *Writes* `generate/`: `taxonomy.json`, `prompts.json`, `teacher.json`,
//! `subjects_raw.jsonl` and `subjects.jsonl`, `syllabi.jsonl`, `questions.jsonl`, `answers.jsonl` (and the drafts of the
//! first two, where asked for in two turns), `usage.jsonl`, `stats.json`. *Rejects* replies that cannot be used, one
//! line each in `rejected.jsonl`, and fails when too many are. *Resumes* at the first request that is not on disk; the
//! teacher is loaded only when there is one.

mod answers;
mod combos;
mod ledger;
mod prompts;
mod questions;
mod stats;
mod step;
mod subjects;
mod syllabus;
mod taxonomy;
mod text;
mod two_step;
mod weak;

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use self::{
    answers::Answers, prompts::Prompts, questions::Questions, stats::StepStats, step::run_step, taxonomy::Taxonomy,
    weak::Samples,
};
use crate::{
    config::Config,
    error::usage,
    language_model::{LanguageModel, ModelIdentity, ModelLoader},
    records,
    run_dir::RunDir,
};

/// Runs the stage; the teacher is loaded only when something is left to do. `weak` is a file of weak disciplines, for
/// which more is made than the run has.
///
/// **Errors**: usage for faults of the taxonomy, the prompts and the weak disciplines; a sub-step whose yield is under
/// `generate.min_yield`; and [`crate::error::Failure::Interrupted`]. Whatever was made stays on disk.
pub fn run(config: &Config, run_dir: &RunDir, weak: Option<&Path>, load_teacher: &mut ModelLoader) -> Result<()> {
    let taxonomy = Taxonomy::load(&config.generate.taxonomy)?;
    let prompts = Prompts::load(&config.generate)?;
    let folder = run_dir.stage("generate");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create folder `{}`", folder.display()))?;
    taxonomy.save(&folder.join("taxonomy.json"))?;
    prompts.save(&folder.join("prompts.json"))?;

    let disciplines = taxonomy.disciplines();
    let rounds = weak::rounds(&folder, weak, &disciplines)?;
    if let Some(summary) = weak::summary(&rounds) {
        tracing::info!("{summary}");
    }
    let mut stage = Stage { config, folder, load_teacher, teacher: None, stats: Stats::default() };
    stage.stats.counts.fields = taxonomy.fields.len();
    stage.stats.counts.subfields = taxonomy.fields.iter().map(|field| field.subfields.len()).sum();
    stage.stats.counts.disciplines = disciplines.len();

    let subjects = subjects::run(&mut stage, &prompts, &disciplines)?;
    stage.stats.counts.subjects = subjects.len();
    let samples = Samples::new(&config.generate, &rounds, disciplines.len());
    let syllabi = syllabus::run(&mut stage, &prompts, &subjects, &samples, rounds.len())?;
    let all = syllabi.iter().flatten();
    let sessions = all.clone().flat_map(|syllabus| &syllabus.class_sessions);
    stage.stats.counts.syllabi = all.count();
    stage.stats.counts.class_sessions = sessions.clone().count();
    stage.stats.counts.key_concepts = sessions.map(|session| session.key_concepts.len()).sum();

    let asked = run_step(&mut stage, &Questions::new(config, &prompts, &disciplines, &syllabi, &rounds))?;
    stage.stats.counts.questions = asked.kept;
    let questions_file = stage.folder.join("questions.jsonl");
    let answers = Answers { config, prompts: &prompts, questions_file, num_questions: asked.kept };
    let answered = run_step(&mut stage, &answers)?;
    stage.stats.counts.answers = answered.kept;
    stage.save_stats()?;
    if answered.kept == 0 {
        bail!(
            "no question-answer pair was made ({} subjects, {} syllabi, {} questions); see `{}`",
            subjects.len(),
            stage.stats.counts.syllabi,
            asked.kept,
            stage.folder.join("rejected.jsonl").display()
        );
    }
    tracing::info!("generate: {} question-answer pairs from {} questions", answered.kept, asked.kept);
    Ok(())
}

/// What the sub-steps share.
struct Stage<'a, 'b> {
    config: &'a Config,
    folder: PathBuf,
    load_teacher: &'a mut ModelLoader<'b>,
    teacher: Option<Box<dyn LanguageModel>>,
    stats: Stats,
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

impl Stage<'_, '_> {
    /// The teacher, loaded at the first call.
    ///
    /// **Errors**: usage, when the run was begun with other weights.
    fn teacher(&mut self) -> Result<&mut dyn LanguageModel> {
        if self.teacher.is_none() {
            let teacher = (self.load_teacher)()?;
            self.check_identity(teacher.identity())?;
            self.teacher = Some(teacher);
        }
        Ok(self.teacher.as_deref_mut().expect("it was loaded above"))
    }

    fn check_identity(&self, identity: &ModelIdentity) -> Result<()> {
        let path = self.folder.join("teacher.json");
        if !path.exists() {
            return records::write_json(&path, identity);
        }
        let begun_with: ModelIdentity = records::read_json(&path)?;
        if (&begun_with.hash, &begun_with.dtype) != (&identity.hash, &identity.dtype) {
            return Err(usage(format!(
                "the teacher `{}` ({} {}) is not the one that this run was begun with, `{}` ({} {}); \
                 take another --run-dir, or the first teacher",
                identity.name, identity.hash, identity.dtype, begun_with.name, begun_with.hash, begun_with.dtype
            )));
        }
        Ok(())
    }

    fn add_stats(&mut self, stats: StepStats) -> Result<()> {
        self.stats.steps.push(stats);
        self.save_stats()
    }

    fn save_stats(&self) -> Result<()> {
        records::write_json(&self.folder.join("stats.json"), &self.stats)
    }
}
