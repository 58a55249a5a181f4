//! A judge model compares the answers of two models: GLAN-Test, and the Evol-Instruct test's protocol for any questions.
//!
//! Both models answer every question; the judge is shown each pair in both orders and scores both answers from 1 to 10.
//! What counts is the averaged gap, tuned minus base, over all questions and by discipline, field, skill and difficulty,
//! next to the judge's bias towards a place. Answers and verdicts go through the same files as those of other tasks
//! ([`super::responses`]), so an interrupted comparison goes on where it stopped.
//!
//! **Source**: GLAN, section 3.5 (criteria, scale, both orders, the gap). The paper prints no prompt.

mod prompt;
mod questions;
mod results;
mod run;
mod summary;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use self::{prompt::JudgePrompt, questions::Question, summary::Verdicts};
pub use self::{
    run::{check, of_run, run_models},
    summary::{Gap, PositionBias, Summary, table},
};
use super::{
    inputs::Inputs,
    plan::{Plan, PlannedTask},
    prompt::{Context, PromptStyle},
    responses::{self, Response},
    stage,
    task::{Document, Split, Target, Task},
    tasks::definition::Definition,
};
use crate::{
    config::JudgeConfig,
    language_model::{LanguageModel, Message},
};

/// Version of the built-in prompt and of the scoring; gaps of different versions do not compare.
const VERSION: f64 = 1.0;

/// Whose answers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The model that is compared with.
    Base,
    /// The model that is judged: gaps are its scores minus the base's.
    Tuned,
}

impl Side {
    /// As files and tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Side::Base => "base",
            Side::Tuned => "tuned",
        }
    }
}

/// A comparison under way.
pub struct Judging {
    /// The task's name, such as `glan_test`.
    name: String,
    /// Where results, answers and verdicts go.
    folder: PathBuf,
    questions: Vec<Question>,
    prompt: JudgePrompt,
    config: JudgeConfig,
    /// Answers begin after the last of these.
    think_end_token: String,
    /// Root of the bootstrap's draws.
    seed: u64,
    bootstrap_iters: usize,
    /// Identifies questions, models and settings.
    hash: String,
    /// Name and answers, base and tuned.
    answered: [Option<(String, Vec<String>)>; 2],
}

impl Judging {
    /// Asks one of the two models every question.
    ///
    /// `chat` asks through the model's chat template, where it has one; else it is given the bare question.
    ///
    /// **Errors**: those of the model; interruption, with every answer so far on disk.
    pub fn answer(&mut self, side: Side, chat: bool, model: &mut dyn LanguageModel) -> Result<()> {
        let chat = chat && model.chat_template().is_some();
        let task = task("answers", self.config.max_answer_tokens, 0.0);
        let documents = self.questions.iter().map(|question| document(question.row.clone(), question.text()));
        let context = |question: &Question| {
            vec![if chat { Context::Messages(question.turns.clone()) } else { Context::Text(question.text()) }]
        };
        let contexts = self.questions.iter().map(context).collect();
        let mut plan = plan(task, documents.collect(), contexts, chat);
        plan.think_end_token.clone_from(&self.think_end_token);
        let said = said(&plan, &self.folder.join(side.name()), model)?;
        // No answer is an answer, of which the judge thinks as it should.
        let answers = said.into_iter().map(Result::unwrap_or_default).collect();
        self.answered[side as usize] = Some((model.identity().name.clone(), answers));
        Ok(())
    }

    /// Shows the judge every pair of answers in both orders, and writes results and samples.
    ///
    /// **Errors**: those of the model; interruption, with every verdict so far on disk.
    pub fn judge(&self, model: &mut dyn LanguageModel) -> Result<Judged> {
        let [Some((base, base_answers)), Some((tuned, tuned_answers))] = &self.answered else {
            anyhow::bail!("the judge is asked before both models have answered")
        };
        let chat = model.chat_template().is_some();
        let inputs = Inputs::of(model);
        let (mut documents, mut contexts, mut fits) = (Vec::new(), Vec::new(), Vec::new());
        for (question, pair) in self.questions.iter().zip(base_answers.iter().zip(tuned_answers)) {
            let orders = [[pair.0, pair.1], [pair.1, pair.0]];
            let text = question.text();
            let prompts = orders.map(|[first, second]| self.prompt.render(&text, first, second));
            let [base_first, tuned_first] = prompts;
            let prompts = [base_first?, tuned_first?].map(|prompt| (context(&prompt, chat), prompt));
            // A prompt that is cut would be judged for what is left of it.
            let mut fit = true;
            for (context, _) in &prompts {
                fit &= inputs.encode(context)?.len() + self.config.max_tokens <= model.max_model_len();
            }
            fits.push(fit);
            if fit {
                for (order, (context, prompt)) in ["base_first", "tuned_first"].iter().zip(prompts) {
                    documents.push(document(json!({"order": order}), prompt));
                    contexts.push(vec![context]);
                }
            }
        }
        let task = task("verdicts", self.config.max_tokens, self.config.temperature);
        let plan = plan(task, documents, contexts, chat);
        let said = said(&plan, &self.folder.join("judge"), model)?;
        let mut pairs = said.chunks_exact(2);
        let texts: Vec<Option<[String; 2]>> = fits
            .iter()
            .map(|fit| if *fit { pairs.next() } else { None })
            .map(|pair| pair.map(|pair| [0, 1].map(|order| pair[order].clone().unwrap_or_default())))
            .collect();
        let verdicts: Vec<Option<Verdicts>> = texts.iter().map(|pair| pair.as_ref().map(verdicts_of)).collect();
        let summary = summary::summarise(&self.questions, &verdicts, self.seed, self.bootstrap_iters);
        let judged = Judged {
            name: self.name.clone(),
            base: base.clone(),
            tuned: tuned.clone(),
            judge: model.identity().name.clone(),
            summary,
        };
        results::write(self, &judged, &texts, &verdicts)?;
        Ok(judged)
    }
}

/// A finished comparison.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Judged {
    /// The task's name.
    pub name: String,
    /// The model that is compared with.
    pub base: String,
    /// The model that is judged.
    pub tuned: String,
    /// Who judged.
    pub judge: String,
    /// What came of it.
    pub summary: Summary,
}

impl Judged {
    /// For people.
    pub fn table(&self) -> String {
        table(&self.name, &self.judge, &self.summary)
    }
}

/// The scores of both orders as `[base, tuned]`.
fn verdicts_of([base_first, tuned_first]: &[String; 2]) -> Verdicts {
    let swapped = |[first, second]: [f64; 2]| [second, first];
    Verdicts { base_first: prompt::scores(base_first), tuned_first: prompt::scores(tuned_first).map(swapped) }
}

fn context(prompt: &str, chat: bool) -> Context {
    if chat { Context::Messages(vec![Message::user(prompt)]) } else { Context::Text(format!("{prompt}\n\n")) }
}

fn document(row: Value, text: String) -> Document {
    Document { row, text, target: Target::Text(String::new()), shot_answer: String::new(), choices: Vec::new() }
}

/// A task whose documents are given, not read. It lives as long as the program, as every task does.
fn task(name: &str, max_gen_toks: usize, temperature: f64) -> &'static dyn Task {
    let kwargs = json!({
        "until": [], "max_gen_toks": max_gen_toks, "do_sample": temperature > 0.0, "temperature": temperature,
    });
    Box::leak(Definition::generative(name, VERSION, kwargs, |_: &Path, _| Ok(Split::default())).boxed())
}

fn plan(task: &'static dyn Task, documents: Vec<Document>, contexts: Vec<Vec<Context>>, chat: bool) -> Plan {
    let style = if chat { PromptStyle::chat() } else { PromptStyle::plain() };
    Plan::of(vec![PlannedTask::given(task, documents, contexts)], style)
}

/// What the model says to every document; an error for a request that could not be served.
fn said(plan: &Plan, folder: &Path, model: &mut dyn LanguageModel) -> Result<Vec<Result<String, String>>> {
    let answers = responses::answer(plan, folder, &stage::key_of(model), model)?;
    if let (failed @ 1.., Some(first)) = answers.failures() {
        tracing::warn!("{failed} requests could not be served; the first: {first}");
    }
    let text = |responses: &Vec<Response>| match responses.first() {
        Some(Response::Generated { text }) => Ok(text.clone()),
        Some(Response::Failed { error }) => Err(error.clone()),
        Some(Response::Scored { .. }) | None => Err("no text".to_owned()),
    };
    Ok(answers.responses[0].iter().map(text).collect())
}
