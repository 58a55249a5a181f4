//! The columns that take a model, with a scripted one.

use std::{fs, path::Path};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{
    model_columns::{ModelColumns, Role, measure},
    rows::RowFormat,
};
use crate::{
    chat_template::ChatTemplate,
    config::CurateConfig,
    language_model::{
        Completion, FinishReason, LanguageModel, ModelIdentity, Prompt, Request, Score, ScoreRequest, TextEncoder,
    },
    tokenizer::{Tokenizer, toy},
};

/// Finds a token half as surprising after a question that has its letters, and gives every answer its length as a score.
struct Scripted {
    tokenizer: Tokenizer,
    identity: ModelIdentity,
    served: usize,
    fail_after: usize,
}

impl Scripted {
    fn new(hash: &str, fail_after: usize) -> Self {
        let identity =
            ModelIdentity { name: "scripted".into(), hash: hash.into(), num_parameters: 0, dtype: "f32".into() };
        Self { tokenizer: toy::byte_level(None, "<|endoftext|>"), identity, served: 0, fail_after }
    }

    fn count(&mut self) -> Result<()> {
        self.served += 1;
        if self.served > self.fail_after { bail!("killed by the test") } else { Ok(()) }
    }
}

impl LanguageModel for Scripted {
    fn generate(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        on_result: &mut dyn FnMut(Completion) -> Result<()>,
    ) -> Result<()> {
        for request in requests {
            self.count()?;
            let Prompt::TokenIds(ids) = &request.prompt else { bail!("token ids are asked for") };
            let prompt = self.tokenizer.decode(ids, false)?;
            let answer = prompt.split("[Begin of the answer]\n").nth(1).and_then(|rest| rest.lines().next());
            let text = match answer.map(str::len) {
                Some(length) if length > 10 => "I would not say.".to_owned(),
                length => format!("**Score:** {}/10\nBecause of 2 reasons.", length.unwrap_or(0)),
            };
            on_result(Completion { text, finish_reason: FinishReason::Stop, ..Completion::failed(request.id, "") })?;
        }
        Ok(())
    }

    fn score(
        &mut self,
        requests: &mut dyn Iterator<Item = ScoreRequest>,
        on_result: &mut dyn FnMut(Score) -> Result<()>,
    ) -> Result<()> {
        // The engine finishes in any order.
        let mut requests: Vec<_> = requests.collect();
        requests.reverse();
        for request in requests {
            self.count()?;
            let helps = |id: &u32| request.context_token_ids.contains(id);
            let logprob = |id: &u32| if helps(id) { -1.0 } else { -2.0 };
            let token_logprobs: Vec<f32> = request.continuation_token_ids.iter().map(logprob).collect();
            let sum = token_logprobs.iter().map(|&logprob| f64::from(logprob)).sum();
            on_result(Score { id: request.id, logprob: sum, is_greedy: false, token_logprobs, error: None })?;
        }
        Ok(())
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn chat_template(&self) -> Option<&ChatTemplate> {
        None
    }

    fn max_model_len(&self) -> usize {
        900
    }

    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }
}

fn config() -> CurateConfig {
    CurateConfig { ifd_model: "a".into(), judge_model: "b".into(), ..CurateConfig::default() }
}

fn rows(count: usize) -> String {
    let row = |number: usize| {
        let answer = match number % 4 {
            0 => "abc".to_owned(),
            1 => "xyz".to_owned(),
            2 => "abcxyz".to_owned(),
            _ => "y".repeat(1000),
        };
        json!({"id": format!("r{number}"), "messages": [
            {"role": "user", "content": "a b c?"}, {"role": "assistant", "content": answer}]})
    };
    (0..count).map(|number| if number == 9 { "torn\n".into() } else { format!("{}\n", row(number)) }).collect()
}

/// Measures, and gives back what the pass reads, by column.
fn measured(folder: &Path, config: &CurateConfig, model: impl Fn(Role) -> Scripted) -> Result<Vec<Vec<Option<f64>>>> {
    let input = folder.join("in.jsonl");
    let mut load = |role| -> Result<Box<dyn LanguageModel>> { Ok(Box::new(model(role))) };
    measure(&input, RowFormat::Messages, folder, config, &mut load)?;
    let mut columns = ModelColumns::open(folder, config)?;
    let lines = fs::read_to_string(&input)?.lines().count();
    (0..lines).map(|_| Ok(columns.next_line()?.into_iter().map(|(_, value)| value).collect())).collect()
}

#[test]
fn ifd_and_scores_are_measured_of_every_row() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("in.jsonl"), rows(12))?;
    let found = measured(folder.path(), &config(), |_| Scripted::new("h", usize::MAX))?;
    let helped = (1.0f64 - 2.0).exp();
    // Every letter of the question, none of them, half of them; too long for the model.
    let expected = [
        vec![Some(helped), Some(3.0)],
        vec![Some(1.0), Some(3.0)],
        vec![Some((1.5f64 - 2.0).exp()), Some(6.0)],
        vec![None, None],
    ];
    for (number, values) in found.iter().enumerate() {
        let expected = if number == 9 { &vec![None, None] } else { &expected[number % 4] };
        let is_near = |(found, expected): (&Option<f64>, &Option<f64>)| match (found, expected) {
            (Some(found), Some(expected)) => (found - expected).abs() < 1e-6,
            (found, expected) => found == expected,
        };
        assert!(values.iter().zip(expected).all(is_near), "{number}: {values:?}, {expected:?} expected");
    }
    Ok(())
}

#[test]
fn an_interrupted_measurement_goes_on_and_another_model_or_answer_begins_anew() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    fs::write(path("in.jsonl"), rows(2500))?;
    let whole = measured(folder.path(), &config(), |_| Scripted::new("h", usize::MAX))?;
    let bytes = fs::read(path("ifd.jsonl"))?;
    let judged = fs::read(path("judge_score.jsonl"))?;
    fs::remove_file(path("ifd.jsonl"))?;
    // Dies in the third thousand; the first two and a torn line are on disk.
    assert!(measured(folder.path(), &config(), |_| Scripted::new("h", 3500)).is_err());
    let partial = fs::read(path("ifd.jsonl"))?;
    assert!(bytes.starts_with(&partial) && partial.len() > bytes.len() / 2 && partial.len() < bytes.len());
    fs::write(path("ifd.jsonl"), [partial.as_slice(), b"{\"id\":\"r20"].concat())?;
    let again =
        measured(folder.path(), &config(), |role| Scripted::new("h", if role == Role::Ifd { 1000 } else { 0 }))?;
    assert_eq!((again, fs::read(path("ifd.jsonl"))?), (whole, bytes.clone()));
    assert_eq!(fs::read(path("judge_score.jsonl"))?, judged);
    assert!(measured(folder.path(), &config(), |_| Scripted::new("other", 100)).is_err(), "another model");

    measured(folder.path(), &config(), |_| Scripted::new("h", usize::MAX))?;
    assert_eq!(fs::read(path("ifd.jsonl"))?, bytes);
    fs::write(path("in.jsonl"), rows(2500).replace("\"abc\"", "\"abd\""))?;
    assert!(measured(folder.path(), &config(), |_| Scripted::new("h", 100)).is_err(), "other answers");
    Ok(())
}

#[test]
fn a_template_that_hides_the_answer_is_a_usage_error() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let template = folder.path().join("judge.jinja");
    fs::write(&template, "Rate {{ question }}.")?;
    fs::write(folder.path().join("in.jsonl"), rows(1))?;
    let config = CurateConfig { judge_model: "b".into(), judge_template: template, ..CurateConfig::default() };
    let error = measured(folder.path(), &config, |_| Scripted::new("h", 0)).expect_err("it shows no answer");
    assert_eq!(crate::error::exit_code(&error), 2);
    assert!(format!("{error:#}").contains("{{ answer }}"), "{error:#}");
    Ok(())
}

/// The scripted model, and an encoder that looks at the first letter alone.
struct Models;

impl super::Models for Models {
    fn language_model(&mut self, _: Role) -> Result<Box<dyn LanguageModel>> {
        Ok(Box::new(Scripted::new("h", usize::MAX)))
    }

    fn encoder(&mut self) -> Result<Box<dyn TextEncoder>> {
        Ok(Box::new(FirstLetter(Scripted::new("encoder", 0).identity)))
    }
}

struct FirstLetter(ModelIdentity);

impl TextEncoder for FirstLetter {
    fn encode(&self, text: &str) -> Result<Vec<f32>> {
        let mut vector = vec![0.0; 26];
        vector[usize::from(text.to_lowercase().as_bytes()[0] - b'a')] = 1.0;
        Ok(vector)
    }

    fn identity(&self) -> &ModelIdentity {
        &self.0
    }
}

#[test]
fn questions_of_one_meaning_name_the_first_and_the_audit_names_the_encoder() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out"));
    // Number 600 is in the second batch; of the same letter as 0, and of the same words as 1, which means what 0 means.
    let question = |number: usize| match number {
        600 => "Apes climb high trees".to_owned(),
        601 => "ANTS march along, in lines".to_owned(),
        0 => "A lone wolf howls".to_owned(),
        1 => "Ants march along in lines".to_owned(),
        number => format!("{} is the letter of row {number}", char::from(b'b' + (number % 25) as u8)),
    };
    let row = |number: usize| {
        json!({"id": format!("r{number}"), "messages": [{"role": "user", "content": question(number)},
            {"role": "assistant", "content": "So it is."}]})
    };
    fs::write(&input, (0..602).map(|number| format!("{}\n", row(number))).collect::<String>())?;
    let mut config = crate::config::Config::default();
    config.curate.encoder_model = "e".into();
    let stats = super::curate_file(&config, None, &input, &output, &mut Models)?;
    assert_eq!((stats.rows_in, stats.kept, stats.rejected["semantic_duplicate"]), (602, 26, 575));
    let rejected: Vec<Value> = crate::records::read_jsonl(&output.join("rejected.jsonl"))?;
    let evidence = |id: &str| {
        let row = rejected.iter().find(|row| row["id"] == id).expect("it is rejected");
        format!("{} {}", row["reason"].as_str().unwrap_or_default(), row["evidence"].as_str().unwrap_or_default())
    };
    assert_eq!(evidence("r1"), "semantic_duplicate r0 (cosine 1.000)");
    assert_eq!(evidence("r600"), "semantic_duplicate r0 (cosine 1.000)");
    assert_eq!(evidence("r601"), "exact_duplicate r0", "the row that means the same is the one that was kept");
    let audit: Value = crate::records::read_json(&output.join("audit.json"))?;
    assert_eq!(audit["stages"][0]["vectors"], "scripted");
    let last = audit["stages"].as_array().and_then(|stages| stages.last()).expect("stages");
    assert!(last["vendi_score"].as_f64().is_some_and(|score| (score - 26.0).abs() < 1e-3), "{}", last["vendi_score"]);

    config.curate.semantic_duplicate_threshold = 1.0;
    let stats = super::curate_file(&config, None, &input, &output, &mut Models)?;
    assert_eq!((stats.kept, stats.rejected["exact_duplicate"]), (601, 1), "a threshold of 1 only looks");
    Ok(())
}

#[test]
fn thresholds_cut_by_what_models_measured() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out"));
    let row = |id: &str, question: &str, answer: &str| {
        json!({"id": id, "messages": [
            {"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    };
    fs::write(
        &input,
        [row("good", "what is abcd?", "a bad cab"), row("odd", "what is efgh?", "zumxyzumxy")]
            .map(|row| format!("{row}\n"))
            .concat(),
    )?;
    let mut config = crate::config::Config::default();
    config.curate = CurateConfig { thresholds: vec!["ifd < 0.9".into()], ifd_model: "a".into(), ..config.curate };
    super::curate_file(&config, None, &input, &output, &mut Models)?;
    let scores: Vec<Value> = crate::records::read_jsonl(&output.join("scores.jsonl"))?;
    let outcome = |row: &Value| (row["outcome"].clone(), row["ifd"].as_f64().is_some_and(|ifd| ifd < 0.9));
    assert_eq!(scores.iter().map(outcome).collect::<Vec<_>>(), [(json!("kept"), true), (json!("threshold"), false)]);
    Ok(())
}
