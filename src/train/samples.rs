//! What the student answers to the same few prompts as it learns: `samples.jsonl`, and a line each in the log.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{dataset::Dataset, monitor::reopen};
use crate::{
    chat_template::ChatTemplate,
    config::TrainConfig,
    language_model::Message,
    model::{Adapter, Decoder, greedy},
    records::JsonlWriter,
    tokenizer::Tokenizer,
};

/// Prompts of validation rows that are longer than this are passed over: each new token reads the whole prompt.
const LONGEST_PROMPT: usize = 512;
/// Characters of an answer that the log shows.
const SHOWN: usize = 160;

/// One line of `samples.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SampleRow {
    step: usize,
    /// Of the validation row, or the prompt's place in the configuration.
    id: String,
    prompt: String,
    answer: String,
}

/// The prompts of a run.
pub struct Samples {
    writer: JsonlWriter,
    prompts: Vec<(String, Vec<u32>)>,
    eos_token_ids: Vec<u32>,
    max_new_tokens: usize,
}

impl Samples {
    /// The prompts of the configuration, else those of the first validation rows; `None` where there are none. The file is
    /// cut back to `step`, from which the run goes on.
    pub fn new(
        output: &Path,
        settings: &TrainConfig,
        step: usize,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        valid: Option<&Dataset>,
        eos_token_ids: Vec<u32>,
    ) -> Result<Option<Self>> {
        let mut prompts = Vec::new();
        for (index, prompt) in settings.sample_prompts.iter().enumerate() {
            let rendered = match template {
                Some(template) => template.render(&[Message::user(prompt.clone())], true)?,
                None => prompt.clone(),
            };
            // A template writes its own start of text.
            let ids = tokenizer.encode(&rendered, template.is_none())?;
            prompts.push((format!("prompt-{}", index + 1), ids));
        }
        let rows = valid.filter(|_| prompts.is_empty()).map_or(0, Dataset::len);
        for row in 0..rows {
            if prompts.len() == settings.num_samples {
                break;
            }
            let Some(valid) = valid else { break };
            let example = valid.example(row)?;
            // What stands before the first answer; a plain text has nothing there.
            let prompt = example.trained.iter().position(|trained| *trained).unwrap_or(0);
            if (1..=LONGEST_PROMPT).contains(&prompt) {
                prompts.push((example.id, example.token_ids[..prompt].to_vec()));
            }
        }
        if prompts.is_empty() || settings.num_samples == 0 {
            return Ok(None);
        }
        prompts.truncate(settings.num_samples);
        let writer = reopen(&output.join("samples.jsonl"), |row: &SampleRow| row.step <= step)?;
        Ok(Some(Self { writer, prompts, eos_token_ids, max_new_tokens: settings.sample_max_new_tokens }))
    }

    /// Answers every prompt with the weights as they are, always taking the likeliest token.
    pub fn write(
        &mut self,
        step: usize,
        model: &Decoder,
        adapter: Option<&Adapter>,
        tokenizer: &Tokenizer,
    ) -> Result<()> {
        let ids: Vec<Vec<u32>> = self.prompts.iter().map(|(_, ids)| ids.clone()).collect();
        let answers = greedy(model, adapter, &ids, self.max_new_tokens, &self.eos_token_ids)?;
        for ((id, prompt), answer) in self.prompts.iter().zip(answers) {
            let answer = tokenizer.decode(&answer, true)?;
            let line: String =
                answer.trim().chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
            tracing::info!("step {step}: {id}: {line}");
            let prompt = tokenizer.decode(prompt, false)?;
            self.writer.write(&SampleRow { step, id: id.clone(), prompt, answer })?;
        }
        self.writer.sync()
    }
}
