//! Questions to answers (sections 2.4 and 3.1): a separate request that sees the question alone, as the paper found
//! that better than asking for both at once.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Role,
    prompts::{PromptKind, Prompts},
    questions::Question,
    step::{Split, Step, Work, WorkList, sampling_params},
    text::{Rejection, is_refusal, without_thoughts},
};
use crate::{
    config::Config,
    language_model::{Message, SamplingParams},
    records::JsonlReader,
    seed::record_id,
};

/// A line of `answers.jsonl`: what the next stage reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Hash of what made it.
    pub id: String,
    /// Id of the question.
    pub parent: String,
    /// Name of the discipline.
    pub discipline: String,
    /// Name of the subject.
    pub subject: String,
    /// Level of the subject; may be empty.
    pub level: String,
    /// Titles of the class sessions that the question is about.
    pub class_sessions: Vec<String>,
    /// Key concepts that the question was to use.
    pub key_concepts: Vec<String>,
    /// What is asked.
    pub question: String,
    /// What the teacher answers.
    pub answer: String,
}

/// The sub-step.
pub struct Answers<'a> {
    /// The run's configuration.
    pub config: &'a Config,
    /// All templates.
    pub prompts: &'a Prompts,
    /// The file of questions; read as it is worked through.
    pub questions_file: std::path::PathBuf,
    /// How many there are.
    pub num_questions: usize,
}

impl Step for Answers<'_> {
    type Item = Question;
    type Record = Answer;

    fn name(&self) -> &'static str {
        "answers"
    }

    fn file(&self) -> &'static str {
        "answers.jsonl"
    }

    fn total(&self) -> usize {
        self.num_questions
    }

    fn work(&self) -> Result<WorkList<'_, Question>> {
        let run_seed = self.config.seed.to_string();
        Ok(Box::new(JsonlReader::<Question>::open(&self.questions_file)?.map(move |question| {
            let question = question?;
            let id = record_id(&[self.name(), &run_seed, &question.id, &question.question]);
            Ok(Work { id, parent: question.id.clone(), item: question })
        })))
    }

    fn split(&self) -> Split {
        Split::Own
    }

    fn role(&self) -> Role {
        if self.config.answerer.model.is_empty() { Role::Teacher } else { Role::Answerer }
    }

    fn messages(&self, question: &Question) -> Result<Vec<Message>> {
        self.prompts.messages(PromptKind::Answer, &json!({"question": question.question}))
    }

    fn sampling(&self) -> SamplingParams {
        sampling_params(&self.config.generate.answer, None)
    }

    fn record(&self, work: &Work<Question>, text: &str) -> Result<Answer, Rejection> {
        let answer = without_thoughts(text);
        if answer.is_empty() {
            return Err(Rejection::new("empty", text));
        }
        if is_refusal(answer) {
            return Err(Rejection::new("refused", answer));
        }
        let question = work.item.clone();
        Ok(Answer {
            id: work.id.clone(),
            parent: question.id,
            discipline: question.discipline,
            subject: question.subject,
            level: question.level,
            class_sessions: question.class_sessions,
            key_concepts: question.key_concepts,
            question: question.question,
            answer: answer.to_owned(),
        })
    }
}
