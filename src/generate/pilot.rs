//! A pilot before the long run: questions spread evenly over the whole work list, and their answers.
//!
//! Critiques, further turns and scores (`refine.rs`) are not part of it: their cost comes on top.
//! It tells what the run will cost (tokens, hours, pairs) and fails where too little of it can be used, after minutes and
//! not after a day. Its rows lie in `pilot/` and are those of the run: whatever it asked is not asked again.

use std::{ops::Range, path::PathBuf, time::Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    Role, Stage,
    answers::{Answers, Sample, Samples},
    ledger::Ledger,
    prompts::Prompts,
    questions::Questions,
    refine,
    spare::Answered,
    stats::StepStats,
    step::{Part, Step, Work, WorkList, finish_part},
    text::Rejection,
};
use crate::{
    language_model::{Message, SamplingParams},
    records,
};

/// A run is long, and worth a pilot, from this many times the pilot's questions on.
const LONG: usize = 20;

/// `pilot/estimate.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Rows of the yield table for the pilot's questions and answers.
    pub pilot: Vec<StepStats>,
    /// How long it took; loading the teacher is not counted.
    pub pilot_seconds: f64,
    /// Questions that the run will ask, the pilot's included.
    pub questions: usize,
    /// Question-answer pairs to expect.
    pub pairs: f64,
    /// One standard error of `pairs`.
    pub pairs_stderr: f64,
    /// Tokens of all prompts, of questions and answers.
    pub prompt_tokens: f64,
    /// Tokens that the teacher will write.
    pub completion_tokens: f64,
    /// Hours on this machine, at the pilot's speed.
    pub hours: f64,
}

impl Estimate {
    /// In words.
    pub fn sentence(&self) -> String {
        let asked = self.pilot.first().map_or(0, |questions| questions.requested);
        let kept = (self.pairs / self.questions.max(1) as f64 * asked as f64).round();
        format!(
            "{} of {} pilot questions became pairs; {} questions will give {:.0} +- {:.0} pairs from {:.2e} prompt and {:.2e} \
             written tokens, in {:.2} hours on this machine",
            kept,
            asked,
            self.questions,
            self.pairs,
            self.pairs_stderr,
            self.prompt_tokens,
            self.completion_tokens,
            self.hours
        )
    }

    fn new((asked, answered): (StepStats, StepStats), pairs: usize, questions: usize, seconds: f64) -> Self {
        let pilot = asked.requested.max(1) as f64;
        let scale = questions as f64 / pilot;
        let share = pairs as f64 / pilot;
        // One success and one failure more, so that a pilot without a failure is not certain.
        let cautious = (pairs + 1) as f64 / (pilot + 2.0);
        let sum = |of: fn(&StepStats) -> usize| scale * (of(&asked) + of(&answered)) as f64;
        Self {
            questions,
            pairs: share * questions as f64,
            pairs_stderr: (cautious * (1.0 - cautious) / pilot).sqrt() * questions as f64,
            prompt_tokens: sum(|stats| stats.prompt_tokens),
            completion_tokens: sum(|stats| stats.completion_tokens),
            hours: scale * seconds / 3600.0,
            pilot_seconds: seconds,
            pilot: vec![asked, answered],
        }
    }
}

/// Some positions of a work list.
struct Sampled<'a, S> {
    step: &'a S,
    positions: Vec<usize>,
}

impl<S: Step> Step for Sampled<'_, S> {
    type Item = S::Item;
    type Record = S::Record;

    fn name(&self) -> &'static str {
        self.step.name()
    }

    fn file(&self) -> &'static str {
        self.step.file()
    }

    fn total(&self) -> usize {
        self.positions.len()
    }

    fn work(&self) -> Result<WorkList<'_, S::Item>> {
        let at = |&position: &usize| self.step.work_in(position..position + 1);
        let lists: Result<Vec<_>> = self.positions.iter().map(at).collect();
        Ok(Box::new(lists?.into_iter().flatten()))
    }

    fn work_in(&self, _: Range<usize>) -> Result<WorkList<'_, S::Item>> {
        self.work()
    }

    fn role(&self) -> Role {
        self.step.role()
    }

    fn messages(&self, item: &S::Item) -> Result<Vec<Message>> {
        self.step.messages(item)
    }

    fn sampling(&self) -> SamplingParams {
        self.step.sampling()
    }

    fn record(&self, work: &Work<S::Item>, text: &str) -> Result<S::Record, Rejection> {
        self.step.record(work, text)
    }
}

/// Asks the pilot's questions and answers, where the run is long or `always`; `None` where there is none.
///
/// **Errors**: those of [`super::step::run_step`], a yield under the floor among them.
pub fn run(stage: &mut Stage, questions: &Questions, prompts: &Prompts, always: bool) -> Result<Option<Estimate>> {
    let (total, wanted) = (questions.total(), stage.config.generate.pilot_questions);
    let folder = stage.folder.join("pilot");
    let saved = folder.join("estimate.json");
    let is_begun = stage.folder.join(questions.file()).metadata().is_ok_and(|file| file.len() > 0);
    if saved.exists() {
        return Ok(Some(records::read_json(&saved)?));
    }
    if !always && (wanted == 0 || total < LONG * wanted || is_begun || stage.shard.is_some()) {
        return Ok(None);
    }
    ensure!(total > 0, "there is no question to ask: the syllabi have no key concepts");
    let number = wanted.clamp(1, total);
    tracing::info!("pilot: {number} of {total} questions, spread evenly");
    // Before the clock starts.
    stage.model(questions.role())?;
    let mut clock = Clock::open(folder.join("seconds.json"));
    let part = Part { folder: folder.clone(), range: 0..number };
    let positions = (0..number).map(|index| (2 * index + 1) * total / (2 * number)).collect();
    let asked = clock.time(|| do_part(stage, &Sampled { step: questions, positions }, &part))?;
    let questions_file = folder.join(questions.file());
    let answers = Answers { config: stage.config, prompts, questions_file, num_questions: asked.kept };
    stage.model(answers.role())?;
    let (answered, pairs) = if refine::is_on(stage.config) {
        let samples = Samples { plain: answers };
        let range = 0..samples.total();
        let answered = clock.time(|| do_part(stage, &samples, &Part { folder: folder.clone(), range }))?;
        let of: Vec<Sample> = records::read_jsonl(&folder.join(samples.file()))?;
        (answered, of.chunk_by(|a, b| a.parent == b.parent).count())
    } else {
        let answered = clock.time(|| do_part(stage, &answers, &Part { folder, range: 0..asked.kept }))?;
        let pairs = answered.kept;
        (answered, pairs)
    };
    let estimate = Estimate::new((asked, answered), pairs, total, clock.seconds);
    records::write_json(&saved, &estimate)?;
    tracing::info!("pilot: {}", estimate.sentence());
    Ok(Some(estimate))
}

/// Time over several tries: a pilot that a floor or Ctrl-C ended goes on. What a kill ended is not counted.
struct Clock {
    path: PathBuf,
    seconds: f64,
}

impl Clock {
    fn open(path: PathBuf) -> Self {
        let seconds = records::read_json(&path).unwrap_or(0.0);
        Self { path, seconds }
    }

    fn time<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let result = work();
        self.seconds += begun.elapsed().as_secs_f64();
        records::write_json(&self.path, &self.seconds)?;
        result
    }
}

fn do_part<S: Step>(stage: &mut Stage, step: &S, part: &Part) -> Result<StepStats> {
    let mut stats = StepStats::new(step.name(), step.total());
    finish_part(stage, step, part, &mut stats)?;
    Ok(stats)
}

/// The pilot's rows of a sub-step; none where there was no pilot.
pub fn rows(stage: &Stage, step: &str, file: &str) -> Result<Vec<Answered>> {
    let folder = stage.folder.join("pilot");
    if !folder.join(file).exists() {
        return Ok(Vec::new());
    }
    // Several shards may look at once, so nothing is opened for writing.
    Ledger::read(&folder, step, file)
}
