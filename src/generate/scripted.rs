//! A teacher for tests: its reply is a function of the request, and it finishes requests in a shuffled order.

use std::{cell::Cell, rc::Rc};

use anyhow::Result;
use rand::Rng;

use crate::{
    chat_template::ChatTemplate,
    language_model::{
        Completion, Constraint, FinishReason, LanguageModel, ModelIdentity, Prompt, Request, Score, ScoreRequest,
    },
    seed,
    tokenizer::Tokenizer,
};

/// What the script says to one request.
pub enum Reply {
    /// A finished text.
    Text(String),
    /// A text cut at `max_new_tokens`.
    Cut(String),
    /// The request cannot be served.
    Failed(String),
}

/// What is asked for, told from the request alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Free text or JSON of subjects.
    Subjects { json: bool },
    /// Free text or JSON of a syllabus.
    Syllabus { json: bool },
    /// A question.
    Question,
    /// An answer.
    Answer,
    /// What has to be changed in one.
    Critique,
    /// It written anew.
    Rewrite,
    /// A further question.
    FollowUp,
    /// A score.
    Judgement,
}

/// The teacher.
pub struct Scripted {
    script: Rc<dyn Fn(&Request) -> Reply>,
    /// Requests in flight together.
    max_num_seqs: usize,
    /// Results until the process "is killed"; shared, so that it spans sub-steps.
    lives: Rc<Cell<usize>>,
    identity: ModelIdentity,
}

impl Scripted {
    /// A teacher that never fails and serves `max_num_seqs` requests at once.
    pub fn new(script: Rc<dyn Fn(&Request) -> Reply>, max_num_seqs: usize) -> Self {
        let identity =
            ModelIdentity { name: "scripted".into(), hash: "0".repeat(16), num_parameters: 0, dtype: "f32".into() };
        Self { script, max_num_seqs, lives: Rc::new(Cell::new(usize::MAX)), identity }
    }

    /// Fails in place of result number `lives` (from 0).
    pub fn killed_after(mut self, lives: usize) -> Self {
        self.lives = Rc::new(Cell::new(lives));
        self
    }

    /// Dies together with others that share its lives: a process that loads several models.
    pub fn sharing(mut self, lives: &Rc<Cell<usize>>) -> Self {
        self.lives = Rc::clone(lives);
        self
    }

    /// With other weights.
    pub fn with_hash(mut self, hash: &str) -> Self {
        self.identity.hash = hash.into();
        self
    }
}

/// The text of the last user turn.
pub fn last_turn(request: &Request) -> &str {
    match &request.prompt {
        Prompt::Messages(messages) => &messages.last().expect("a conversation has a turn").content,
        _ => unreachable!("stage 1 sends conversations"),
    }
}

/// Tells what is asked for.
pub fn asked(request: &Request) -> Asked {
    let json = request.sampling.constraint.is_some();
    match &request.sampling.constraint {
        Some(Constraint::JsonSchema(schema)) if schema["properties"].get("subjects").is_some() => {
            return Asked::Subjects { json };
        }
        Some(Constraint::JsonSchema(schema)) if schema["properties"].get("score").is_some() => return Asked::Judgement,
        Some(Constraint::JsonSchema(_)) => return Asked::Syllabus { json },
        Some(_) => unreachable!("stage 1 constrains by schema alone"),
        None => {}
    }
    let text = last_turn(request);
    if text.contains("Design a list of the subjects") {
        Asked::Subjects { json }
    } else if text.contains("Design a syllabus") {
        Asked::Syllabus { json }
    } else if text.contains("Check this answer step by step") {
        Asked::Critique
    } else if text.contains("Write the answer anew") {
        Asked::Rewrite
    } else if text.contains("Write what the student asks next") {
        Asked::FollowUp
    } else if text.contains("Write one homework question") {
        Asked::Question
    } else {
        Asked::Answer
    }
}

/// A teacher that does everything well; what it writes depends on the request's seed.
pub fn good_reply(request: &Request) -> String {
    let number = request.sampling.seed % 3;
    match asked(request) {
        Asked::Subjects { json: false } => format!("1. Topic {number} (basic)\n2. Common topic (basic)"),
        Asked::Subjects { json: true } => format!(
            r#"{{"subjects":[{{"subject_name":"Topic {number}","level":"basic","subtopics":["part {number}"]}},{{"subject_name":"Common topics","level":"basic","subtopics":["x","part {number}"]}}]}}"#
        ),
        Asked::Syllabus { json: false } => "An introduction. Session 1: alpha. Session 2: beta.".into(),
        Asked::Syllabus { json: true } => r#"{"introduction":"An introduction.","class_sessions":[{"title":"alpha","description":"first","key_concepts":["a1","a2"]},{"title":"beta","description":"second","key_concepts":["b1","b2","b3"]}]}"#.into(),
        Asked::Question => format!("Question: What is {}?", request.sampling.seed),
        Asked::Answer => format!("It is {}.", last_turn(request)),
        Asked::Critique if number == 0 => "No change needed.".into(),
        Asked::Critique => format!("Point {number} is wrong."),
        Asked::Rewrite => format!("Rather it is {}.", request.sampling.seed),
        Asked::FollowUp => format!("And what of {}?", request.sampling.seed),
        Asked::Judgement => format!(r#"{{"reason":"Because.","score":{}}}"#, 1 + number),
    }
}

impl LanguageModel for Scripted {
    fn generate(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        on_result: &mut dyn FnMut(Completion) -> Result<()>,
    ) -> Result<()> {
        let mut running: Vec<Request> = Vec::new();
        let mut rng = seed::stream(self.max_num_seqs as u64, "scripted", "");
        loop {
            running.extend((&mut *requests).take(self.max_num_seqs - running.len()));
            if running.is_empty() {
                return Ok(());
            }
            let request = running.swap_remove(rng.random_range(0..running.len()));
            let Some(lives) = self.lives.get().checked_sub(1) else { anyhow::bail!("killed") };
            self.lives.set(lives);
            let (text, finish_reason, error) = match (self.script)(&request) {
                Reply::Text(text) => (text, FinishReason::Stop, None),
                Reply::Cut(text) => (text, FinishReason::Length, None),
                Reply::Failed(error) => (String::new(), FinishReason::Error, Some(error)),
            };
            on_result(Completion {
                token_ids: vec![0; text.split_whitespace().count()],
                prompt_tokens: last_turn(&request).split_whitespace().count(),
                id: request.id,
                index: 0,
                text,
                finish_reason,
                logprobs: None,
                error,
            })?;
        }
    }

    fn score(
        &mut self,
        _requests: &mut dyn Iterator<Item = ScoreRequest>,
        _on_result: &mut dyn FnMut(Score) -> Result<()>,
    ) -> Result<()> {
        unreachable!("stage 1 scores nothing")
    }

    fn tokenizer(&self) -> &Tokenizer {
        unreachable!("stage 1 hands over text, never tokens")
    }

    fn chat_template(&self) -> Option<&ChatTemplate> {
        None
    }

    fn max_model_len(&self) -> usize {
        4096
    }

    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }
}
