//! OpenAI's batch files: `--export-batch` writes the requests of the sub-step that is next, `--import-batch` reads their answers.
//!
//! Both are a [`LanguageModel`] that the stage asks as any other: one writes down what it is asked and stops there, the other
//! knows the answers of a file and leaves the rest unanswered. So what is pending, in which order, under which ids and
//! what becomes of a reply is decided in one place. A `custom_id` is the record's id and the seed of the attempt.

use std::{
    cell::Cell,
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::Path,
    rc::Rc,
};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Extra, Role, run, step::Unanswered};
use crate::{
    chat_template::ChatTemplate,
    config::{Config, ModelConfig},
    error::usage,
    language_model::{Completion, LanguageModel, ModelIdentity, Request, Score, ScoreRequest},
    records::JsonlWriter,
    requests::openai::{Endpoint, chat_body, read_chat_reply},
    run_dir::RunDir,
    seed::record_id,
    tokenizer::Tokenizer,
};

/// Most requests of one file (OpenAI's bound).
const MAX_REQUESTS: usize = 50_000;

/// What came of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Requests in the file; 0 where the run is finished.
    pub requests: usize,
}

/// What came of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Answers of the file that were asked for.
    pub used: usize,
    /// The sub-step that still has pending requests, and how many; `None` where the run is finished.
    pub pending: Option<(String, usize)>,
}

/// Writes the pending requests of the sub-step that is next, at most 50,000.
///
/// **Errors**: usage, where the file exists; those of [`run`].
pub fn export(config: &Config, run_dir: &RunDir, file: &Path) -> Result<Exported> {
    if file.exists() {
        return Err(usage(format!("`{}` exists; name another file, or remove it", file.display())));
    }
    let config = without_pilot(config);
    let result = run(&config, run_dir, Extra::default(), &mut |role| {
        let config = model_of(&config, role);
        Ok(Box::new(Exporter {
            model: config.model.clone(),
            identity: identity(config)?,
            file: JsonlWriter::create(file)?,
        }))
    });
    match result {
        Ok(()) => Ok(Exported { requests: 0 }),
        Err(error) => match error.downcast_ref::<Written>() {
            Some(Written(requests)) => Ok(Exported { requests: *requests }),
            None => Err(error),
        },
    }
}

/// Reads answers back. Requests whose answer is missing or failed stay pending; answers that nothing asks for are passed over.
///
/// **Errors**: the file is missing or damaged; those of [`run`].
pub fn import(config: &Config, run_dir: &RunDir, file: &Path) -> Result<Imported> {
    let config = without_pilot(config);
    let answers = Rc::new(Answers::open(file)?);
    let result = run(&config, run_dir, Extra::default(), &mut |role| {
        let identity = identity(model_of(&config, role))?;
        Ok(Box::new(Importer { answers: Rc::clone(&answers), identity }))
    });
    let pending = match result {
        Ok(()) => None,
        Err(error) => match error.downcast_ref::<Unanswered>() {
            Some(Unanswered { step, left }) => Some(((*step).to_owned(), *left)),
            None => return Err(error),
        },
    };
    Ok(Imported { used: answers.used.get(), pending })
}

/// A pilot measures this machine's speed, which says nothing of a service.
fn without_pilot(config: &Config) -> Config {
    let mut config = config.clone();
    config.generate.pilot_questions = 0;
    config
}

fn model_of(config: &Config, role: Role) -> &ModelConfig {
    match role {
        Role::Teacher => &config.teacher,
        Role::Answerer => &config.answerer,
        Role::Judge => &config.judge,
    }
}

/// What a run's files say of a model whose weights are elsewhere: its name is all that is known.
///
/// **Errors**: usage, where it has none.
pub fn identity(model: &ModelConfig) -> Result<ModelIdentity> {
    if model.model.is_empty() {
        return Err(usage("no teacher is named: set `teacher.model` to the name that the service knows"));
    }
    let hash = record_id(&["remote", &model.model]);
    Ok(ModelIdentity { name: model.model.clone(), hash, num_parameters: 0, dtype: "remote".to_owned() })
}

fn custom_id(request: &Request) -> String {
    format!("{}-{:016x}", request.id, request.sampling.seed)
}

/// The way out of the stage once the requests are written.
#[derive(Debug, thiserror::Error)]
#[error("{0} requests were written")]
struct Written(usize);

struct Exporter {
    model: String,
    identity: ModelIdentity,
    file: JsonlWriter,
}

struct Importer {
    answers: Rc<Answers>,
    identity: ModelIdentity,
}

/// The lines of a file of answers, by `custom_id`: only their places are in memory.
struct Answers {
    shown: String,
    file: File,
    places: HashMap<String, u64>,
    used: Cell<usize>,
}

impl Answers {
    fn open(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let context = || format!("cannot read `{shown}`");
        let file = File::open(path).with_context(context)?;
        let mut lines = BufReader::new(&file);
        let (mut places, mut offset, mut line, mut number) = (HashMap::new(), 0, Vec::new(), 0);
        loop {
            line.clear();
            let read = lines.read_until(b'\n', &mut line).with_context(context)?;
            if read == 0 {
                break;
            }
            number += 1;
            if !line.trim_ascii().is_empty() {
                let row: Value = serde_json::from_slice(&line)
                    .with_context(|| format!("`{shown}` line {number}: not JSON (mend or remove this line)"))?;
                let Some(id) = row["custom_id"].as_str() else {
                    bail!("`{shown}` line {number}: no `custom_id`; expected the output file of OpenAI's batch API");
                };
                places.insert(id.to_owned(), offset);
            }
            offset += read as u64;
        }
        Ok(Self { shown, file, places, used: Cell::new(0) })
    }

    /// The answer to a request; `None` where there is none or it failed.
    fn answer(&self, request: &Request) -> Result<Option<Completion>> {
        let Some(&place) = self.places.get(&custom_id(request)) else { return Ok(None) };
        let context = || format!("cannot read `{}`", self.shown);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(place)).with_context(context)?;
        let mut line = Vec::new();
        BufReader::new(file).read_until(b'\n', &mut line).with_context(context)?;
        let row: Value = serde_json::from_slice(&line).with_context(context)?;
        if row["response"]["status_code"].as_u64() != Some(200) {
            return Ok(None);
        }
        let completion = read_chat_reply(&request.id, &row["response"]["body"]);
        self.used.set(self.used.get() + usize::from(completion.is_ok()));
        Ok(completion.ok())
    }
}

impl Exporter {
    fn write(&mut self, requests: &mut dyn Iterator<Item = Request>) -> Result<usize> {
        let mut written = 0;
        for request in requests.take(MAX_REQUESTS) {
            let body = chat_body(&request, &self.model).map_err(anyhow::Error::msg)?;
            let (url, custom_id) = (Endpoint::ChatCompletions.path(), custom_id(&request));
            self.file.write(&json!({"custom_id": custom_id, "method": "POST", "url": url, "body": body}))?;
            written += 1;
        }
        self.file.sync()?;
        Ok(written)
    }
}

impl LanguageModel for Exporter {
    fn generate(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        _: &mut dyn FnMut(Completion) -> Result<()>,
    ) -> Result<()> {
        Err(Written(self.write(requests)?).into())
    }

    fn score(
        &mut self,
        _: &mut dyn Iterator<Item = ScoreRequest>,
        _: &mut dyn FnMut(Score) -> Result<()>,
    ) -> Result<()> {
        bail!("a batch file has no likelihoods")
    }

    fn tokenizer(&self) -> &Tokenizer {
        unreachable!("this stage hands over text, never tokens")
    }

    fn chat_template(&self) -> Option<&ChatTemplate> {
        None
    }

    fn max_model_len(&self) -> usize {
        usize::MAX
    }

    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }
}

impl LanguageModel for Importer {
    fn generate(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        on_result: &mut dyn FnMut(Completion) -> Result<()>,
    ) -> Result<()> {
        for request in requests {
            if let Some(completion) = self.answers.answer(&request)? {
                on_result(completion)?;
            }
        }
        Ok(())
    }

    fn score(
        &mut self,
        _: &mut dyn Iterator<Item = ScoreRequest>,
        _: &mut dyn FnMut(Score) -> Result<()>,
    ) -> Result<()> {
        bail!("a batch file has no likelihoods")
    }

    fn tokenizer(&self) -> &Tokenizer {
        unreachable!("this stage hands over text, never tokens")
    }

    fn chat_template(&self) -> Option<&ChatTemplate> {
        None
    }

    fn max_model_len(&self) -> usize {
        usize::MAX
    }

    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }
}
