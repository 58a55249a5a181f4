//! `glan chat`: a conversation on the terminal, or one turn per line of a pipe.

use std::{
    io::{BufRead, IsTerminal, Write},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    cli::ModelArgs,
    config, engine,
    error::Failure,
    interrupt,
    language_model::{Completion, LanguageModel, Message, Prompt, Request, SamplingParams},
    seed,
};

/// Arguments of `glan chat`.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// System message.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens with at least this probability; 1 is off.
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f32,
    /// Divides positive (multiplies negative) logits of tokens already seen; 1 is off.
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Most tokens of one answer.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_new_tokens: usize,
    /// Seed of the conversation.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Longest conversation in tokens; 0 takes the model's own limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_model_len: usize,
    /// One JSON object per answer on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn main(args: &ChatArgs) -> Result<()> {
    let mut config = config::load(None, &args.model.set)?;
    // One conversation needs one seat, and its cache is all the memory that the pool has to hold.
    config.engine.max_num_seqs = 1;
    let device = args.model.device.open()?;
    let mut engine =
        engine::load_engine(&args.model.model, &config.engine, &device, args.model.dtype, args.max_model_len)?;
    let has_template = engine.chat_template().is_some();
    if !has_template {
        tracing::warn!("`{}` has no chat template; it continues what you type", args.model.model);
    }
    let stdin_is_terminal = std::io::stdin().is_terminal();
    if stdin_is_terminal {
        tracing::info!("type a message and press Enter; /reset starts over, /exit or Ctrl-D ends");
    }
    let style = Style {
        json: args.json,
        streams: !args.json && std::io::stdout().is_terminal(),
        shows_prompt: !args.json && stdin_is_terminal && std::io::stdout().is_terminal(),
    };
    let lines = stdin_lines();
    let mut chat =
        Chat { args, conversation: Conversation::new(has_template, args.system.as_deref()), num_turns: 0, style };
    let mut answer =
        |request: Request, on_text: &mut dyn FnMut(&str) -> Result<()>| engine.generate_streaming(request, on_text);
    let ended = chat.run(&mut || next_line(&lines), &mut answer, &mut std::io::stdout());
    match ended {
        // Nothing is to be saved here: Ctrl-C is one more way to say goodbye.
        Err(error) if matches!(error.downcast_ref(), Some(Failure::Interrupted)) => Ok(()),
        ended => ended,
    }
}

/// Lines of stdin, read on a thread of their own so that Ctrl-C is seen while nothing is typed.
fn stdin_lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, lines) = mpsc::sync_channel(0);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn next_line(lines: &mpsc::Receiver<std::io::Result<String>>) -> Result<Option<String>> {
    loop {
        interrupt::check()?;
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => return Ok(Some(line.context("cannot read stdin (expected UTF-8 text)")?)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

/// How answers are shown.
#[derive(Debug, Clone, Copy)]
struct Style {
    json: bool,
    /// Text is shown as it is made.
    streams: bool,
    shows_prompt: bool,
}

type Answer<'a> = dyn FnMut(Request, &mut dyn FnMut(&str) -> Result<()>) -> Result<Vec<Completion>> + 'a;

struct Chat<'a> {
    args: &'a ChatArgs,
    conversation: Conversation,
    num_turns: usize,
    style: Style,
}

impl Chat<'_> {
    /// Turn by turn until `/exit` or the end of the lines.
    fn run(
        &mut self,
        next_line: &mut dyn FnMut() -> Result<Option<String>>,
        answer: &mut Answer,
        out: &mut dyn Write,
    ) -> Result<()> {
        loop {
            if self.style.shows_prompt {
                write!(out, "> ")?;
                out.flush()?;
            }
            let Some(line) = next_line()? else { return Ok(()) };
            match line.trim() {
                "" => {}
                "/exit" => return Ok(()),
                "/reset" => self.conversation.reset(self.args.system.as_deref()),
                text => self.turn(text, answer, out)?,
            }
        }
    }

    fn turn(&mut self, text: &str, answer: &mut Answer, out: &mut dyn Write) -> Result<()> {
        let request = self.request(text);
        self.num_turns += 1;
        let streams = self.style.streams;
        let mut num_shown_bytes = 0;
        let mut on_text = |piece: &str| {
            if streams {
                num_shown_bytes += piece.len();
                out.write_all(piece.as_bytes())?;
                out.flush()?;
            }
            Ok(())
        };
        let mut completions = answer(request, &mut on_text)?;
        let completion = completions.pop().context("the model gave no answer")?;
        if self.style.json {
            let line = serde_json::json!({
                "role": "assistant",
                "content": completion.text,
                "finish_reason": completion.finish_reason,
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.token_ids.len(),
                "error": completion.error,
            });
            writeln!(out, "{line}")?;
        } else if completion.error.is_none() {
            // What streaming has held back, or all of it.
            writeln!(out, "{}", completion.text.get(num_shown_bytes..).unwrap_or_default())?;
        }
        match completion.error {
            None => self.conversation.add(text, &completion.text),
            Some(error) => tracing::error!("{error} (/reset starts over)"),
        }
        Ok(())
    }

    fn request(&self, text: &str) -> Request {
        let turn = self.num_turns.to_string();
        Request {
            prompt: self.conversation.prompt(text),
            sampling: SamplingParams {
                max_new_tokens: self.args.max_new_tokens,
                temperature: self.args.temperature,
                top_p: self.args.top_p,
                repetition_penalty: self.args.repetition_penalty,
                seed: seed::derive(self.args.seed, "chat", &turn),
                ..SamplingParams::default()
            },
            id: turn,
        }
    }
}

/// What was said so far.
#[derive(Debug, Clone, PartialEq)]
enum Conversation {
    /// For a chat template.
    Messages(Vec<Message>),
    /// For a model without one: all text in a row.
    Plain(String),
}

impl Conversation {
    fn new(has_template: bool, system: Option<&str>) -> Self {
        let mut conversation = if has_template { Self::Messages(Vec::new()) } else { Self::Plain(String::new()) };
        conversation.reset(system);
        conversation
    }

    fn reset(&mut self, system: Option<&str>) {
        match self {
            Self::Messages(messages) => *messages = system.map(Message::system).into_iter().collect(),
            Self::Plain(text) => *text = system.map(|system| format!("{system}\n")).unwrap_or_default(),
        }
    }

    /// The prompt of the next turn.
    fn prompt(&self, text: &str) -> Prompt {
        match self {
            Self::Messages(messages) => {
                Prompt::Messages(messages.iter().cloned().chain([Message::user(text)]).collect())
            }
            Self::Plain(before) => Prompt::Text(format!("{before}{text}")),
        }
    }

    fn add(&mut self, text: &str, answer: &str) {
        match self {
            Self::Messages(messages) => messages.extend([Message::user(text), Message::assistant(answer)]),
            Self::Plain(before) => before.push_str(&format!("{text}{answer}\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::language_model::FinishReason;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        chat: ChatArgs,
    }

    /// Runs a chat whose model answers `<prompt's last text>!` in two pieces and fails on `too long`.
    fn chat(lines: &[&str], has_template: bool, json: bool, streams: bool) -> (String, Vec<Prompt>) {
        let args = Cli::parse_from(["chat", "--model", "m", "--system", "S"]).chat;
        let conversation = Conversation::new(has_template, args.system.as_deref());
        let style = Style { json, streams, shows_prompt: false };
        let mut chat = Chat { args: &args, conversation, num_turns: 0, style };
        let mut lines = lines.iter();
        let mut next_line = || Ok(lines.next().map(|&line| line.to_owned()));
        let mut prompts = Vec::new();
        let mut answer = |request: Request, on_text: &mut dyn FnMut(&str) -> Result<()>| {
            let last = match &request.prompt {
                Prompt::Messages(messages) => messages.last().unwrap().content.clone(),
                Prompt::Text(text) => text.lines().last().unwrap().to_owned(),
                Prompt::TokenIds(_) => unreachable!("chat sends text"),
            };
            prompts.push(request.prompt);
            if last == "too long" {
                return Ok(vec![Completion::failed(request.id, "too long")]);
            }
            on_text(&last)?;
            let finish_reason = FinishReason::Stop;
            let failed = Completion::failed(request.id, "");
            Ok(vec![Completion { text: format!("{last}!"), error: None, finish_reason, ..failed }])
        };
        let mut out = Vec::new();
        chat.run(&mut next_line, &mut answer, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), prompts)
    }

    #[test]
    fn the_conversation_is_kept_until_it_is_reset() {
        let (out, prompts) = chat(&["one", "", "two", "/reset", "three", "/exit", "four"], true, false, true);
        assert_eq!(out, "one!\ntwo!\nthree!\n");
        let system = Message::system("S");
        let expected = [
            Prompt::Messages(vec![system.clone(), Message::user("one")]),
            Prompt::Messages(vec![
                system.clone(),
                Message::user("one"),
                Message::assistant("one!"),
                Message::user("two"),
            ]),
            Prompt::Messages(vec![system, Message::user("three")]),
        ];
        assert_eq!(prompts, expected);
    }

    #[test]
    fn a_model_without_template_continues_the_text() {
        let (_, prompts) = chat(&["one", "two"], false, false, false);
        assert_eq!(prompts, [Prompt::Text("S\none".into()), Prompt::Text("S\noneone!\ntwo".into())]);
    }

    #[test]
    fn a_turn_that_fails_is_not_kept() {
        let (out, prompts) = chat(&["too long", "two"], true, true, false);
        let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines[0]["error"].as_str(), lines[0]["finish_reason"].as_str()), (Some("too long"), Some("error")));
        assert_eq!((lines[1]["content"].as_str(), lines[1]["error"].is_null()), (Some("two!"), true));
        assert_eq!(prompts[1], Prompt::Messages(vec![Message::system("S"), Message::user("two")]));
    }
}
