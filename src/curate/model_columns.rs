//! The columns that take a model: IFD and a judge's score, measured of every row before the rows are judged.
//!
//! Each column has a file of its own beside the results, `ifd.jsonl` or `judge_score.jsonl`, with one line per line of the
//! input and in its order, written every [`ROWS_AHEAD`] rows. A line carries a hash of the model and of what it was asked,
//! so an interrupted measurement goes on where it stopped, and another model or another answer is measured anew. The
//! pass over the rows then reads these files next to its input; neither is ever in memory as a whole.
//!
//! **Source**: IFD, Li et al. 2023 (2308.12032), as the quotient of perplexities (Superfiltering, 2402.00530): how much
//! the question helps to predict the answer. 1 and more: not at all, which speaks of an answer to something else. The
//! scale of the judge is that of the answers' comparison in `evaluate` (1 to 10).

use std::{
    io::BufRead,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use anyhow::{Context, Result};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::{
    benchmarks,
    pass::read_batch,
    rows::{Row, RowFormat},
};
use crate::{
    chat_template::{encode_prompt, prompt_token_ids},
    config::CurateConfig,
    error::usage,
    language_model::{LanguageModel, Message, Prompt, Request, SamplingParams, ScoreRequest},
    records::{JsonlReader, JsonlWriter},
    seed,
    telemetry::Progress,
};

/// The built-in prompt of the judge.
const TEMPLATE: &str = include_str!("judge_template.jinja");
const NAME: &str = "judge";
/// Rows that go to the model together; their values are on disk when all are there.
const ROWS_AHEAD: usize = 1024;
/// Version of the columns' definitions; part of every line's hash.
const VERSION: &str = "1";

/// A model that the stage asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Whose perplexities make IFD.
    Ifd,
    /// Who scores the answers.
    Judge,
}

impl Role {
    const ALL: [Role; 2] = [Role::Ifd, Role::Judge];

    /// The column that it measures.
    pub fn column(self) -> &'static str {
        match self {
            Role::Ifd => "ifd",
            Role::Judge => "judge_score",
        }
    }

    fn model(self, config: &CurateConfig) -> &str {
        match self {
            Role::Ifd => &config.ifd_model,
            Role::Judge => &config.judge_model,
        }
    }

    fn file(self, output: &Path) -> PathBuf {
        output.join(format!("{}.jsonl", self.column()))
    }
}

/// Loads the model of a role.
pub type ModelLoader<'a> = dyn FnMut(Role) -> Result<Box<dyn LanguageModel>> + 'a;

/// One line of a column's file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Line {
    /// The row's id.
    id: String,
    /// Of the model, the column's definition and what is measured.
    hash: String,
    /// `None`: no row, too long for the model, or no score in what the judge wrote.
    value: Option<f64>,
}

/// Measures the columns that the configuration names a model for.
///
/// **Errors**: those of the loader and the models; a judge's template that cannot be used (usage); interruption, with
/// every value so far on disk.
pub fn measure(
    input: &Path,
    format: RowFormat,
    output: &Path,
    config: &CurateConfig,
    load: &mut ModelLoader,
) -> Result<()> {
    for role in Role::ALL.into_iter().filter(|role| !role.model(config).is_empty()) {
        let prompt = match role {
            Role::Ifd => None,
            Role::Judge => Some(JudgePrompt::load(&config.judge_template)?),
        };
        // Loaded when its time comes, and gone before the next.
        let mut model = load(role)?;
        let source = prompt.as_ref().map_or("", |prompt| &prompt.source);
        let key = format!("{VERSION} {} {} {source}", model.identity().hash, config.judge_max_tokens);
        std::fs::create_dir_all(output).with_context(|| format!("cannot create folder `{}`", output.display()))?;
        let mut book = Book::open(&role.file(output), role, &key, input, format)?;
        let mut rows = Rows::open(input, format)?.skip(book.done);
        loop {
            let rows = rows.by_ref().take(ROWS_AHEAD).collect::<std::io::Result<Vec<_>>>();
            let rows = rows.with_context(|| format!("cannot read `{}`", input.display()))?;
            if rows.is_empty() {
                break;
            }
            let values = match &prompt {
                None => ifd(model.as_mut(), &rows)?,
                Some(prompt) => judge(model.as_mut(), &rows, prompt, config.judge_max_tokens)?,
            };
            book.write(&key, &rows, &values)?;
        }
        book.finish()?;
    }
    Ok(())
}

/// What models have measured of one line, by column.
pub type Measured = Vec<(&'static str, Option<f64>)>;

/// The measured columns, read in step with the input.
pub struct ModelColumns {
    readers: Vec<(Role, JsonlReader<Line>)>,
}

impl ModelColumns {
    /// Opens the files of the columns that [`measure`] has measured.
    pub fn open(output: &Path, config: &CurateConfig) -> Result<Self> {
        let measured = Role::ALL.into_iter().filter(|role| !role.model(config).is_empty());
        let readers = measured.map(|role| Ok((role, JsonlReader::open(&role.file(output))?)));
        Ok(Self { readers: readers.collect::<Result<_>>()? })
    }

    /// The values of the next line of the input, by column.
    ///
    /// **Errors**: a file that ends before the input does.
    pub fn next_line(&mut self) -> Result<Measured> {
        let value = |(role, reader): &mut (Role, JsonlReader<Line>)| {
            let line = reader.next().with_context(|| {
                format!("the file of `{}` has fewer lines than the rows; run the command again", role.column())
            })??;
            Ok((role.column(), line.value))
        };
        self.readers.iter_mut().map(value).collect()
    }
}

/// The rows of the input, one item per line that is not blank; a line that is no row is named by its id.
struct Rows {
    lines: Box<dyn BufRead>,
    number: usize,
    format: RowFormat,
    batch: std::vec::IntoIter<(usize, Vec<u8>)>,
}

impl Rows {
    fn open(input: &Path, format: RowFormat) -> Result<Self> {
        Ok(Self { lines: benchmarks::open(input)?, number: 0, format, batch: Vec::new().into_iter() })
    }
}

impl Iterator for Rows {
    type Item = std::io::Result<Result<Row, String>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.batch.len() == 0 {
            match read_batch(&mut self.lines, &mut self.number) {
                Ok(batch) => self.batch = batch.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
        let (number, line) = self.batch.next()?;
        Some(Ok(Row::parse(&line, number, self.format).map_err(|bad| bad.id)))
    }
}

/// The lines of a column on disk.
struct Book {
    writer: JsonlWriter,
    progress: Progress,
    /// Lines of an earlier, interrupted measurement that still hold.
    done: usize,
    without_value: usize,
    role: Role,
}

impl Book {
    /// Keeps the lines of the file that are of these rows, up to the first that is not.
    fn open(path: &Path, role: Role, key: &str, input: &Path, format: RowFormat) -> Result<Self> {
        // Cuts a torn line.
        drop(JsonlWriter::append(path)?);
        let (mut done, mut without_value, mut bytes, mut total) = (0, 0, 0, 0);
        let mut old = JsonlReader::<Line>::open(path)?.map_while(Result::ok).fuse();
        let mut holds = true;
        for row in Rows::open(input, format)? {
            let row = row.with_context(|| format!("cannot read `{}`", input.display()))?;
            total += 1;
            let line = old.next().filter(|line| holds && line.hash == hash_of(key, &row));
            holds = line.is_some();
            if let Some(line) = line {
                done += 1;
                without_value += usize::from(line.value.is_none());
                bytes += serde_json::to_vec(&line)?.len() as u64 + 1;
            }
        }
        drop(old);
        let file = std::fs::OpenOptions::new().write(true).open(path);
        file.and_then(|file| file.set_len(bytes)).with_context(|| format!("cannot write `{}`", path.display()))?;
        let progress = Progress::new(role.column(), done as u64, total);
        Ok(Self { writer: JsonlWriter::append(path)?, progress, done, without_value, role })
    }

    fn write(&mut self, key: &str, rows: &[Result<Row, String>], values: &[Option<f64>]) -> Result<()> {
        for (row, &value) in rows.iter().zip(values) {
            let id = row.as_ref().map_or_else(Clone::clone, |row| row.id.clone());
            self.without_value += usize::from(value.is_none());
            self.writer.write(&Line { id, hash: hash_of(key, row), value })?;
        }
        self.progress.advance(rows.len() as u64, "");
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.writer.sync()?;
        self.progress.finish();
        if self.without_value > 0 {
            tracing::warn!("{} rows have no `{}`", self.without_value, self.role.column());
        }
        Ok(())
    }
}

/// What a line of the column is of.
fn hash_of(key: &str, row: &Result<Row, String>) -> String {
    match row {
        Ok(row) => {
            let turns = row.messages.iter().flat_map(|turn| [turn.role.as_str(), turn.content.as_str()]);
            seed::record_id(&[key, &row.id].into_iter().chain(turns).collect::<Vec<_>>())
        }
        Err(id) => seed::record_id(&[key, id]),
    }
}

/// How much likelier the last answer of each row is by itself than after its conversation: the quotient of its
/// perplexities.
fn ifd(model: &mut dyn LanguageModel, rows: &[Result<Row, String>]) -> Result<Vec<Option<f64>>> {
    let longest = model.max_model_len();
    let (mut requests, mut lengths) = (Vec::new(), vec![1; rows.len()]);
    for (place, row) in rows.iter().enumerate() {
        let Some((answer, before)) = row.as_ref().ok().and_then(|row| row.messages.split_last()) else { continue };
        let prompt = match model.chat_template() {
            Some(_) => Prompt::Messages(before.to_vec()),
            None => Prompt::Text(before.iter().map(|turn| format!("{}\n", turn.content)).collect()),
        };
        // A conversation that the template refuses has no value.
        let Ok(context) = prompt_token_ids(model.tokenizer(), model.chat_template(), &prompt) else { continue };
        let answer = model.tokenizer().encode(&answer.content, false)?;
        if answer.is_empty() || context.len() + answer.len() > longest {
            continue;
        }
        let id = |which: usize| (2 * place + which).to_string();
        lengths[place] = answer.len();
        requests.push(ScoreRequest { id: id(0), context_token_ids: context, continuation_token_ids: answer.clone() });
        requests.push(ScoreRequest { id: id(1), context_token_ids: Vec::new(), continuation_token_ids: answer });
    }
    let mut means: Vec<Option<f64>> = vec![None; 2 * rows.len()];
    model.score(&mut requests.into_iter(), &mut |score| {
        let request: usize = score.id.parse()?;
        let mean = score.logprob / lengths[request / 2] as f64;
        means[request] = Some(mean).filter(|_| score.error.is_none());
        Ok(())
    })?;
    let quotient = |pair: &[Option<f64>]| {
        // Perplexities are exponentials of mean log-probabilities with the sign changed.
        let (after, alone) = pair[0].zip(pair[1])?;
        Some((alone - after).exp()).filter(|ifd| ifd.is_finite())
    };
    Ok(means.chunks(2).map(quotient).collect())
}

/// The judge's score of the answers of each row.
fn judge(
    model: &mut dyn LanguageModel,
    rows: &[Result<Row, String>],
    prompt: &JudgePrompt,
    max_new_tokens: usize,
) -> Result<Vec<Option<f64>>> {
    let longest = model.max_model_len();
    let mut requests = Vec::new();
    for (place, row) in rows.iter().enumerate() {
        let Ok(row) = row else { continue };
        let answers: Vec<&str> = row.turns("assistant").collect();
        let text = prompt.render(&row.question(), &answers.join("\n"))?;
        let text = match model.chat_template() {
            Some(template) => template.render(&[Message::user(text)], true)?,
            None => text + "\n",
        };
        let ids = encode_prompt(model.tokenizer(), &text)?;
        // A prompt that is cut would be judged for what is left of it.
        if ids.len() < longest {
            let sampling = SamplingParams { max_new_tokens, ..SamplingParams::default() };
            requests.push(Request { id: place.to_string(), prompt: Prompt::TokenIds(ids), sampling });
        }
    }
    let mut scores = vec![None; rows.len()];
    model.generate(&mut requests.into_iter(), &mut |completion| {
        scores[completion.id.parse::<usize>()?] = score_in(&completion.text);
        Ok(())
    })?;
    Ok(scores)
}

/// The score that a judge gives: the last that is named one ("Score: 8/10", "rated **8**"), else the only number of a
/// line ("8", "[[7.5]]", "8/10"), the first of those. `None` where there is none from 1 to 10.
fn score_in(verdict: &str) -> Option<f64> {
    static NAMED: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r#"(?i)\b(?:score|rating|rated?|grade)\b["'’*\s]*(?:(?:is|of|it|at)\b|[:=])?[\s*\[("]*(\d+(?:\.\d+)?)"#,
        )
        .expect("a fixed pattern")
    });
    static BARE_LINE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?m)^[\s*\[(`#>]*(\d+(?:\.\d+)?)(?:\s*/\s*10)?[\s*\])`.]*$").expect("a fixed pattern")
    });
    let text = verdict.rsplit_once("</think>").map_or(verdict, |(_, after)| after);
    let number = |found: regex::Captures| found[1].parse::<f64>().ok().filter(|score| (1.0..=10.0).contains(score));
    let named = NAMED.captures_iter(text).last().and_then(number);
    named.or_else(|| BARE_LINE.captures(text).and_then(number))
}

/// What the judge reads.
struct JudgePrompt {
    environment: Environment<'static>,
    source: String,
}

impl JudgePrompt {
    /// Reads a template file; an empty path is the built-in one.
    ///
    /// **Errors**: usage, for a file that cannot be read, does not compile, or does not show question and answer.
    fn load(path: &Path) -> Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| {
            usage(format!("the judge's template `{}` (`curate.judge_template`): {error}", path.display()))
        };
        let source = match path.as_os_str().is_empty() {
            true => TEMPLATE.to_owned(),
            false => std::fs::read_to_string(path).map_err(|error| wrong(&error))?,
        };
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.add_template_owned(NAME, source.clone()).map_err(|error| wrong(&error))?;
        let prompt = Self { environment, source };
        let example = prompt.render("QUESTION", "ANSWER").map_err(|error| wrong(&format!("{error:#}")))?;
        for (text, variable) in [("QUESTION", "question"), ("ANSWER", "answer")] {
            if !example.contains(text) {
                return Err(wrong(&format!("it does not show `{{{{ {variable} }}}}`")));
            }
        }
        Ok(prompt)
    }

    fn render(&self, question: &str, answer: &str) -> Result<String> {
        let template = self.environment.get_template(NAME).context("the judge's template was compiled")?;
        Ok(template.render(context! { question, answer })?.trim_end().to_owned())
    }
}
