//! What may be done with answers beyond the paper: several of each, critique and rewriting, further turns, a judge's score. Each is off
//! by default.
//!
//! Every part is a sub-step (a [`Level`]) over the conversations as the levels before it left them, with a file of its own, so it is
//! resumed, sharded and counted like all others. The files of all levels are in the order of the questions, and are joined
//! as they are read; `answers.jsonl` is that join, made once the last level is done. What a level could not do (a
//! critique was rejected, the judge gave no score) leaves the conversation as it was.

use std::{
    iter::Peekable,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Role, Stage,
    answers::{Answer, Answers, Refined, Sample, Samples, read_answer, role},
    consistency,
    prompts::{PromptKind, Prompts},
    questions::Question,
    step::{Split, Step, Work, WorkList, run_step, sampling_params},
    text::{Rejection, clean_question, is_other_script, is_refusal, parse_json, string_field, without_thoughts},
};
use crate::{
    config::Config,
    language_model::{Constraint, Message, SamplingParams},
    records::{JsonlReader, write_atomic_with},
    seed::record_id,
};

/// What is done with the conversations, in this order. Turns count from 1, the first one being the question's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Critique,
    Rewrite,
    FollowUp(usize),
    FollowUpAnswer(usize),
    Judgement,
}

/// Sub-steps and files of the further turns.
const FOLLOW_UPS: [[(&str, &str); 2]; 3] = [
    [("follow_up_questions_1", "follow_up_questions_1.jsonl"), ("follow_up_answers_1", "follow_up_answers_1.jsonl")],
    [("follow_up_questions_2", "follow_up_questions_2.jsonl"), ("follow_up_answers_2", "follow_up_answers_2.jsonl")],
    [("follow_up_questions_3", "follow_up_questions_3.jsonl"), ("follow_up_answers_3", "follow_up_answers_3.jsonl")],
];

impl Level {
    /// Those that are asked for.
    fn of(config: &Config) -> Vec<Self> {
        let mut levels = Vec::new();
        if config.generate.critique_and_rewrite {
            levels.extend([Self::Critique, Self::Rewrite]);
        }
        for turn in 1..=config.generate.follow_up_turns {
            levels.extend([Self::FollowUp(turn), Self::FollowUpAnswer(turn)]);
        }
        if !config.judge.model.is_empty() {
            levels.push(Self::Judgement);
        }
        levels
    }

    /// Name of the sub-step and of its file.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Critique => ("critiques", "critiques.jsonl"),
            Self::Rewrite => ("rewrites", "rewrites.jsonl"),
            Self::FollowUp(turn) => FOLLOW_UPS[turn - 1][0],
            Self::FollowUpAnswer(turn) => FOLLOW_UPS[turn - 1][1],
            Self::Judgement => ("judgements", "judgements.jsonl"),
        }
    }

    /// Whether a conversation is asked about.
    fn concerns(self, conversation: &Conversation) -> bool {
        match self {
            Self::Critique | Self::Judgement => true,
            Self::Rewrite => conversation.critique.is_some(),
            Self::FollowUp(turn) => conversation.turns.len() == turn,
            Self::FollowUpAnswer(_) => conversation.asked.is_some(),
        }
    }

    /// Takes a level's result over: `None` where there is none.
    fn apply(self, conversation: &mut Conversation, row: Option<LevelRow>) {
        let asked = conversation.asked.take();
        let critique = conversation.critique.take();
        let Some(row) = row else { return };
        match self {
            Self::Critique => conversation.critique = (!is_content(&row.text)).then_some((row.id, row.text)),
            Self::Rewrite if critique.is_some() => {
                conversation.turns[0].1 = row.text;
                conversation.refined.rewritten = true;
                conversation.tip = row.id;
            }
            Self::FollowUp(_) => conversation.asked = Some((row.id, row.text)),
            Self::FollowUpAnswer(_) => {
                if let Some((_, question)) = asked {
                    conversation.turns.push((question, row.text));
                    conversation.tip = row.id;
                }
            }
            Self::Judgement => conversation.refined.judge_score = row.score,
            Self::Rewrite => {}
        }
    }
}

/// Whether a critique has nothing to change.
fn is_content(critique: &str) -> bool {
    critique.trim_matches(['"', '*', '.', ' ', '\n']).to_lowercase().starts_with("no change")
}

/// A line of a level's file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct LevelRow {
    /// Hash of what made it.
    id: String,
    /// Id of the record before it in its conversation.
    parent: String,
    /// What was written; of a judgement its reason.
    text: String,
    /// The judge's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    score: Option<u64>,
}

/// A question with what has become of it so far.
#[derive(Debug, Clone)]
struct Conversation {
    question: Question,
    /// Id of the answer to the first question as it was drawn.
    answer_id: String,
    /// Id of the record that was made last: it tells this conversation, as it is now, from every other.
    tip: String,
    /// Questions and answers.
    turns: Vec<(String, String)>,
    refined: Refined,
    /// Id and text of a critique that asks for changes.
    critique: Option<(String, String)>,
    /// Id and text of a follow-up that is not answered yet.
    asked: Option<(String, String)>,
}

impl Conversation {
    /// Id of the record that a level's row stands under.
    fn parent(&self) -> &str {
        self.critique.as_ref().or(self.asked.as_ref()).map_or(&self.tip, |(id, _)| id)
    }

    fn into_answer(self) -> Answer {
        let Self { question, answer_id, mut turns, mut refined, .. } = self;
        if turns.len() > 1 {
            let messages = turns.iter().flat_map(|(asked, answer)| [Message::user(asked), Message::assistant(answer)]);
            refined.messages = messages.collect();
        }
        let (_, answer) = turns.swap_remove(0);
        Answer::new(answer_id, question, answer, refined)
    }
}

/// The files that conversations are read from.
#[derive(Clone)]
struct Files {
    questions: PathBuf,
    samples: PathBuf,
    /// Of the levels that are done.
    levels: Vec<(Level, PathBuf)>,
}

impl Files {
    /// The conversations, in the order of the questions: those of which an answer could be used.
    fn read(&self) -> Result<Conversations> {
        let open = |path: &Path| -> Result<_> { Ok(JsonlReader::open(path)?.peekable()) };
        let levels = self.levels.iter().map(|(level, path)| Ok((*level, open(path)?)));
        Ok(Conversations {
            questions: JsonlReader::open(&self.questions)?,
            samples: JsonlReader::open(&self.samples)?.peekable(),
            levels: levels.collect::<Result<_>>()?,
        })
    }
}

/// The join of the files, as it is read.
struct Conversations {
    questions: JsonlReader<Question>,
    samples: Peekable<JsonlReader<Sample>>,
    levels: Vec<(Level, Peekable<JsonlReader<LevelRow>>)>,
}

impl Iterator for Conversations {
    type Item = Result<Conversation>;

    fn next(&mut self) -> Option<Result<Conversation>> {
        loop {
            let question = match self.questions.next()? {
                Ok(question) => question,
                Err(error) => return Some(Err(error)),
            };
            let mut samples = Vec::new();
            loop {
                match self.samples.next_if(|row| row.as_ref().map_or(true, |row| row.parent == question.id)) {
                    Some(Ok(sample)) => samples.push(sample),
                    Some(Err(error)) => return Some(Err(error)),
                    None => break,
                }
            }
            if samples.is_empty() {
                continue;
            }
            return Some(self.join(question, &samples));
        }
    }
}

impl Conversations {
    fn join(&mut self, question: Question, samples: &[Sample]) -> Result<Conversation> {
        let texts: Vec<&str> = samples.iter().map(|sample| sample.answer.as_str()).collect();
        let (chosen, agreement) = consistency::choose(&texts);
        let Sample { id, answer, .. } = samples[chosen].clone();
        let mut conversation = Conversation {
            turns: vec![(question.question.clone(), answer)],
            question,
            answer_id: id.clone(),
            tip: id,
            refined: Refined { agreement, ..Refined::default() },
            critique: None,
            asked: None,
        };
        for (level, rows) in &mut self.levels {
            if !level.concerns(&conversation) {
                continue;
            }
            let is_own = |row: &Result<LevelRow>| row.as_ref().map_or(true, |row| row.parent == conversation.parent());
            let row = rows.next_if(is_own).transpose()?;
            level.apply(&mut conversation, row);
        }
        Ok(conversation)
    }
}

/// The sub-step of a level.
struct LevelStep<'a> {
    config: &'a Config,
    prompts: &'a Prompts,
    level: Level,
    files: Files,
    total: usize,
}

impl LevelStep<'_> {
    fn conversations(&self) -> Result<impl Iterator<Item = Result<Conversation>> + use<>> {
        let level = self.level;
        Ok(self.files.read()?.filter(move |item| item.as_ref().map_or(true, |item| level.concerns(item))))
    }
}

impl Step for LevelStep<'_> {
    type Item = Conversation;
    type Record = LevelRow;

    fn name(&self) -> &'static str {
        self.level.names().0
    }

    fn file(&self) -> &'static str {
        self.level.names().1
    }

    fn total(&self) -> usize {
        self.total
    }

    fn work(&self) -> Result<WorkList<'_, Conversation>> {
        let run_seed = self.config.seed.to_string();
        Ok(Box::new(self.conversations()?.map(move |conversation| {
            let conversation = conversation?;
            // What is asked about is part of the id: a line that somebody changes is noticed.
            let text = json!([conversation.turns, conversation.critique, conversation.asked]).to_string();
            let parent = conversation.parent().to_owned();
            let id = record_id(&[self.name(), &run_seed, &parent, &text]);
            Ok(Work { id, parent, item: conversation })
        })))
    }

    fn split(&self) -> Split {
        Split::Own
    }

    fn role(&self) -> Role {
        match self.level {
            Level::Critique | Level::FollowUp(_) => Role::Teacher,
            Level::Rewrite | Level::FollowUpAnswer(_) => role(self.config),
            Level::Judgement => Role::Judge,
        }
    }

    fn messages(&self, item: &Conversation) -> Result<Vec<Message>> {
        let (question, answer) = &item.turns[0];
        let turns: Vec<_> =
            item.turns.iter().map(|(question, answer)| json!({"question": question, "answer": answer})).collect();
        match self.level {
            Level::Critique => {
                self.prompts.messages(PromptKind::Critique, &json!({"question": question, "answer": answer}))
            }
            Level::Rewrite => {
                let critique = item.critique.as_ref().map(|(_, text)| text);
                let variables = json!({"question": question, "answer": answer, "critique": critique});
                self.prompts.messages(PromptKind::Rewrite, &variables)
            }
            Level::FollowUp(_) => {
                let Question { discipline, subject, level, .. } = &item.question;
                let variables = json!({"discipline": discipline, "subject": subject, "level": level, "turns": turns});
                self.prompts.messages(PromptKind::FollowUp, &variables)
            }
            Level::FollowUpAnswer(_) => {
                let asked = item.asked.as_ref().map_or("", |(_, text)| text);
                self.prompts.conversation(&item.turns, asked)
            }
            Level::Judgement => self.prompts.messages(PromptKind::Judgement, &json!({"turns": turns})),
        }
    }

    fn sampling(&self) -> SamplingParams {
        let generate = &self.config.generate;
        match self.level {
            Level::Critique => sampling_params(&generate.critique, None),
            Level::Rewrite | Level::FollowUpAnswer(_) => sampling_params(&generate.answer, None),
            Level::FollowUp(_) => sampling_params(&generate.question, None),
            Level::Judgement => {
                let schema = json!({
                    "type": "object",
                    "properties": {
                        "reason": {"type": "string", "minLength": 1, "maxLength": 400},
                        "score": {"type": "integer", "enum": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]},
                    },
                    "required": ["reason", "score"],
                    "additionalProperties": false,
                });
                sampling_params(&generate.judgement, Some(Constraint::JsonSchema(schema)))
            }
        }
    }

    fn record(&self, work: &Work<Conversation>, text: &str) -> Result<LevelRow, Rejection> {
        let (text, score) = match self.level {
            Level::Critique | Level::Rewrite | Level::FollowUpAnswer(_) => (read_answer(text)?, None),
            Level::FollowUp(_) => (read_follow_up(&work.item, text)?, None),
            Level::Judgement => {
                let (reason, score) = read_judgement(text)?;
                (reason, Some(score))
            }
        };
        Ok(LevelRow { id: work.id.clone(), parent: work.parent.clone(), text, score })
    }
}

fn read_follow_up(conversation: &Conversation, text: &str) -> Result<String, Rejection> {
    let question = clean_question(text);
    if question.is_empty() {
        return Err(Rejection::new("empty", text));
    }
    if is_refusal(question) {
        return Err(Rejection::new("refused", question));
    }
    if is_other_script(question, &conversation.question.question) {
        return Err(Rejection::new("wrong_language", question));
    }
    if conversation.turns.iter().any(|(asked, _)| asked == question) {
        return Err(Rejection::new("repeated", question));
    }
    Ok(question.to_owned())
}

fn read_judgement(text: &str) -> Result<(String, u64), Rejection> {
    let text = without_thoughts(text);
    if text.is_empty() {
        return Err(Rejection::new("empty", ""));
    }
    let object = parse_json(text).map_err(|error| Rejection::new("malformed_json", format!("{error}: {text}")))?;
    match object["score"].as_u64().filter(|score| (1..=10).contains(score)) {
        Some(score) => Ok((string_field(&object, &["reason"]), score)),
        None => Err(Rejection::new("no_score", text)),
    }
}

/// Whether anything beyond one answer is asked for.
pub fn is_on(config: &Config) -> bool {
    config.generate.answers_per_question > 1 || !Level::of(config).is_empty()
}

/// The last sub-step with requests.
pub fn last_step(config: &Config) -> &'static str {
    match Level::of(config).last() {
        Some(level) => level.names().0,
        None if is_on(config) => "answer_samples",
        None => "answers",
    }
}

/// Does what is left of all levels, and writes `answers.jsonl`; a shard leaves that to the merge. Returns the number of
/// conversations.
pub fn run(stage: &mut Stage, prompts: &Prompts, questions: (PathBuf, usize)) -> Result<usize> {
    let config = stage.config;
    let (questions_file, num_questions) = questions;
    let plain = Answers { config, prompts, questions_file: questions_file.clone(), num_questions };
    let samples = Samples { plain };
    run_step(stage, &samples)?;
    let mut files = Files { questions: questions_file, samples: stage.own_file(&samples), levels: Vec::new() };
    for level in Level::of(config) {
        let mut step = LevelStep { config, prompts, level, files: files.clone(), total: 0 };
        for conversation in step.conversations()? {
            conversation?;
            step.total += 1;
        }
        run_step(stage, &step)?;
        files.levels.push((level, stage.own_file(&step)));
    }
    let mut kept = 0;
    if stage.shard.is_some() {
        for conversation in files.read()? {
            conversation?;
            kept += 1;
        }
        return Ok(kept);
    }
    write_atomic_with(&stage.folder.join("answers.jsonl"), |file| {
        for conversation in files.read()? {
            serde_json::to_writer(&mut *file, &conversation?.into_answer())?;
            std::io::Write::write_all(file, b"\n")?;
            kept += 1;
        }
        Ok(())
    })?;
    Ok(kept)
}
