//! Runs the answers that are programs, each with its document's tests, and says what became of them.
//!
//! All programs of a task are run together, as many at a time as there are cores; see [`super::sandbox`].

use anyhow::{Context as _, Result};

use super::{
    metrics,
    plan::{Plan, PlannedTask},
    responses::Response,
    sandbox::Outcome,
};
use crate::telemetry::Progress;

/// Programs between two reports of progress.
const AT_A_TIME: usize = 256;

/// What became of a task's programs: `[doc_id][filter][answer]`.
pub type Outcomes = Vec<Vec<Vec<Outcome>>>;

/// Runs the answers to a task's documents (`[doc_id][idx]`); nothing for a task whose answers are no programs.
///
/// A document with a request that failed has no answers to run.
///
/// **Errors**: there is no sandbox, or it failed; interruption.
pub fn run(plan: &Plan, planned: &PlannedTask, responses: &[Vec<Response>]) -> Result<Outcomes> {
    if planned.task.program_scores().is_none() {
        return Ok(Vec::new());
    }
    let sandbox = plan.sandbox.as_ref().context("there is no sandbox to run programs in")?;
    let filters = planned.spec().filters;
    let mut programs = Vec::new();
    let mut counts = Vec::with_capacity(planned.documents.len());
    for (document, responses) in planned.documents.iter().zip(responses) {
        let texts = metrics::texts(responses).unwrap_or_default();
        let tests = document.target.to_string();
        let mut of_document = Vec::with_capacity(filters.len());
        for filter in filters {
            let answers = if texts.is_empty() { Vec::new() } else { planned.task.answers(filter, &texts, &document) };
            of_document.push(answers.len());
            programs.extend(answers.into_iter().map(|answer| format!("{answer}\n{tests}")));
        }
        counts.push(of_document);
    }
    let mut progress = Progress::new(&format!("programs of {}", planned.spec().name), 0, programs.len() as u64);
    let mut outcomes = Vec::with_capacity(programs.len());
    for chunk in programs.chunks(AT_A_TIME) {
        outcomes.extend(sandbox.run_all(chunk)?);
        progress.advance(chunk.len() as u64, "");
    }
    progress.finish();
    let mut outcomes = outcomes.into_iter();
    let nested = |counts: Vec<usize>| counts.into_iter().map(|count| outcomes.by_ref().take(count).collect()).collect();
    Ok(counts.into_iter().map(nested).collect())
}
