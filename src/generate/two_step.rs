//! Free text first, its JSON in a second turn: the paper found that asking for the format along with the content makes
//! the lists worse (section 2.2). Each turn is a sub-step of its own, so a kill loses neither; with
//! `generate.two_step = false` the one constrained turn is the whole request.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Stage,
    prompts::{PromptKind, Prompts},
    step::{Step, Work, WorkList, run_step, sampling_params},
    text::{Rejection, without_thoughts},
};
use crate::{
    config::SamplingConfig,
    language_model::{Constraint, Message, SamplingParams},
    seed::record_id,
};

/// One thing to ask for, in one turn or two.
#[derive(Debug, Clone)]
pub struct Topic {
    /// Id of the record that it comes from.
    pub parent: String,
    /// Which of several samples of the same prompt this is.
    pub sample: usize,
    /// How often its branch was drawn anew.
    pub edition: usize,
    /// Variables of both templates.
    pub variables: Value,
    /// The reply to the first turn.
    pub draft: Option<String>,
}

impl Topic {
    /// The conversation that ends in JSON.
    pub fn json_messages(&self, prompts: &Prompts, first: PromptKind, second: PromptKind) -> Result<Vec<Message>> {
        match &self.draft {
            Some(draft) => prompts.second_turn((first, &self.variables), draft, (second, &self.variables)),
            None => prompts.messages(first, &self.variables),
        }
    }

    /// Id of the record of a sub-step: what it is made from, the draft's text included.
    pub fn id(&self, step: &str, run_seed: u64) -> String {
        let draft = self.draft.as_deref().unwrap_or_default();
        let variables = self.variables.to_string();
        let (run_seed, sample, edition) = (run_seed.to_string(), self.sample.to_string(), self.edition.to_string());
        let mut parts = vec![step, &run_seed, &self.parent, &sample, &variables, draft];
        if self.edition > 0 {
            parts.push(&edition);
        }
        record_id(&parts)
    }
}

/// Sampling of the turn that ends in JSON. Turning a draft into JSON is copying, so it is greedy; without a draft the
/// JSON is the creative turn itself.
pub fn json_sampling(config: &SamplingConfig, two_step: bool, schema: Value) -> SamplingParams {
    let constraint = Some(Constraint::JsonSchema(schema));
    let params = sampling_params(config, constraint);
    if two_step { SamplingParams { temperature: 0.0, ..params } } else { params }
}

/// A line of `subject_drafts.jsonl` or `syllabus_drafts.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Draft {
    /// Hash of what made it.
    pub id: String,
    /// Id of the discipline or subject.
    pub parent: String,
    /// Which of several samples of the same prompt this is.
    pub sample: usize,
    /// As the teacher wrote it.
    pub text: String,
}

/// The sub-step of the first turns.
pub struct Drafts<'a> {
    /// Name of the sub-step.
    pub name: &'static str,
    /// Where the drafts go.
    pub file: &'static str,
    /// The template.
    pub kind: PromptKind,
    /// How drafts are drawn.
    pub sampling: &'a SamplingConfig,
    /// All templates.
    pub prompts: &'a Prompts,
    /// Root of all ids and seeds.
    pub run_seed: u64,
    /// What to ask for.
    pub topics: &'a [Topic],
}

impl Step for Drafts<'_> {
    type Item = Topic;
    type Record = Draft;

    fn name(&self) -> &'static str {
        self.name
    }

    fn file(&self) -> &'static str {
        self.file
    }

    fn total(&self) -> usize {
        self.topics.len()
    }

    fn work(&self) -> Result<WorkList<'_, Topic>> {
        Ok(Box::new(self.topics.iter().map(|topic| {
            Ok(Work { id: topic.id(self.name, self.run_seed), parent: topic.parent.clone(), item: topic.clone() })
        })))
    }

    fn messages(&self, topic: &Topic) -> Result<Vec<Message>> {
        self.prompts.messages(self.kind, &topic.variables)
    }

    fn sampling(&self) -> SamplingParams {
        sampling_params(self.sampling, None)
    }

    fn record(&self, work: &Work<Topic>, text: &str) -> Result<Draft, Rejection> {
        let text = without_thoughts(text);
        if text.is_empty() {
            return Err(Rejection::new("empty", ""));
        }
        let (id, parent) = (work.id.clone(), work.parent.clone());
        Ok(Draft { id, parent, sample: work.item.sample, text: text.to_owned() })
    }

    /// A list that breaks off is still a list; the second turn is told to leave out its last, broken entry.
    fn keeps_truncated(&self) -> bool {
        true
    }
}

/// Makes the drafts and returns the topics that have one, each with its draft.
pub fn with_drafts(stage: &mut Stage, drafts: &Drafts) -> Result<Vec<Topic>> {
    run_step(stage, drafts)?;
    let mut written = stage.read(drafts)?.into_iter().peekable();
    let mut topics = Vec::new();
    // Both are in the order of the work list; a topic whose draft was rejected has no row.
    for topic in drafts.topics {
        if let Some(draft) = written.next_if(|draft| draft.parent == topic.parent && draft.sample == topic.sample) {
            topics.push(Topic { draft: Some(draft.text), ..topic.clone() });
        }
    }
    Ok(topics)
}
