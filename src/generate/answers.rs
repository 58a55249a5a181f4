//! Questions to answers (sections 2.4 and 3.1): a separate request that sees the question alone, as the paper found
//! that better than asking for both at once.
//!
//! Where more than this is wanted of an answer ([`super::refine`]), it is drawn as one or several [`Samples`], from which
//! `answers.jsonl` is made in the end.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Role,
    prompts::{PromptKind, Prompts},
    questions::{Other, Question},
    step::{Split, Step, Work, WorkList, sampling_params},
    text::{Rejection, is_refusal, without_thoughts},
    vary::Attributes,
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
    /// Where the question joins two subjects: the other one.
    #[serde(flatten)]
    pub other: Other,
    /// What the question was varied by.
    #[serde(flatten)]
    pub attributes: Attributes,
    /// What is asked.
    pub question: String,
    /// What the teacher answers.
    pub answer: String,
    /// What was done beyond one answer.
    #[serde(flatten)]
    pub refined: Refined,
}

/// Columns of an answer that was refined; those that do not apply are left out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Refined {
    /// Share of the answers to the question that come to the same result as this one; with several answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// Whether it was written anew after a critique.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rewritten: bool,
    /// The judge's, 1 to 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge_score: Option<u64>,
    /// The whole conversation, where it has more than one turn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
}

impl Answer {
    /// The row of a question and its answer.
    pub fn new(id: String, question: Question, answer: String, refined: Refined) -> Self {
        Self {
            id,
            parent: question.id,
            discipline: question.discipline,
            subject: question.subject,
            level: question.level,
            class_sessions: question.class_sessions,
            key_concepts: question.key_concepts,
            other: question.other,
            attributes: question.attributes,
            question: question.question,
            answer,
            refined,
        }
    }
}

/// Which model answers.
pub fn role(config: &Config) -> Role {
    if config.answerer.model.is_empty() { Role::Teacher } else { Role::Answerer }
}

/// The answer in a reply.
pub fn read_answer(text: &str) -> Result<String, Rejection> {
    let answer = without_thoughts(text);
    if answer.is_empty() {
        return Err(Rejection::new("empty", text));
    }
    if is_refusal(answer) {
        return Err(Rejection::new("refused", answer));
    }
    Ok(answer.to_owned())
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
        role(self.config)
    }

    fn messages(&self, question: &Question) -> Result<Vec<Message>> {
        self.prompts.messages(PromptKind::Answer, &json!({"question": question.question}))
    }

    fn sampling(&self) -> SamplingParams {
        sampling_params(&self.config.generate.answer, None)
    }

    fn record(&self, work: &Work<Question>, text: &str) -> Result<Answer, Rejection> {
        let answer = read_answer(text)?;
        Ok(Answer::new(work.id.clone(), work.item.clone(), answer, Refined::default()))
    }
}

/// A line of `answer_samples.jsonl`: one of the answers to a question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Hash of what made it.
    pub id: String,
    /// Id of the question.
    pub parent: String,
    /// Which of the answers to the question this is.
    pub sample: usize,
    /// What the teacher answers.
    pub answer: String,
}

/// The sub-step that draws `generate.answers_per_question` answers to each question.
pub struct Samples<'a> {
    /// What it shares with the plain sub-step.
    pub plain: Answers<'a>,
}

impl Step for Samples<'_> {
    type Item = (Question, usize);
    type Record = Sample;

    fn name(&self) -> &'static str {
        "answer_samples"
    }

    /// The first answer to a question is the one that the plain sub-step draws.
    fn seed_name(&self) -> &'static str {
        self.plain.name()
    }

    fn file(&self) -> &'static str {
        "answer_samples.jsonl"
    }

    fn total(&self) -> usize {
        self.plain.total() * self.plain.config.generate.answers_per_question
    }

    fn work(&self) -> Result<WorkList<'_, (Question, usize)>> {
        let samples = self.plain.config.generate.answers_per_question;
        Ok(Box::new(self.plain.work()?.flat_map(move |work| {
            let works: Vec<Result<Work<(Question, usize)>>> = match work {
                Err(error) => vec![Err(error)],
                Ok(Work { id, parent, item }) => (0..samples)
                    .map(|sample| {
                        let id = if sample == 0 { id.clone() } else { record_id(&[&id, &sample.to_string()]) };
                        Ok(Work { id, parent: parent.clone(), item: (item.clone(), sample) })
                    })
                    .collect(),
            };
            works
        })))
    }

    fn split(&self) -> Split {
        Split::Own
    }

    fn role(&self) -> Role {
        self.plain.role()
    }

    fn messages(&self, (question, _): &(Question, usize)) -> Result<Vec<Message>> {
        self.plain.messages(question)
    }

    fn sampling(&self) -> SamplingParams {
        self.plain.sampling()
    }

    fn record(&self, work: &Work<(Question, usize)>, text: &str) -> Result<Sample, Rejection> {
        let (id, parent) = (work.id.clone(), work.parent.clone());
        Ok(Sample { id, parent, sample: work.item.1, answer: read_answer(text)? })
    }
}
