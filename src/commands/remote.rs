//! A teacher behind an OpenAI-compatible endpoint: the one place beside `glan fetch` that opens a connection, and only where the
//! configuration names an address (`teacher.endpoint`, `answerer.endpoint`, `judge.endpoint`).
//!
//! `engine.max_num_seqs` requests are under way at once, one thread each. A service that is busy or away is asked again, longer
//! and longer apart; what it refuses is that request's failure, counted like any other; and where it stays away
//! the stage stops with all that was answered kept, for the same command to go on.

use std::{
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, bail};
use serde_json::Value;
use ureq::Agent;

use crate::{
    chat_template::ChatTemplate,
    config::ModelConfig,
    error::usage,
    generate, interrupt,
    language_model::{Completion, LanguageModel, ModelIdentity, Request, Score, ScoreRequest},
    requests::openai::{Endpoint, chat_body, read_chat_reply},
    tokenizer::Tokenizer,
};

/// Longest time of one reply.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Times a request is sent to a service that is busy or away.
const TRIES: u32 = 7;
/// Pause after the first of them; each later one is twice as long, so that all take about a minute.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Most requests under way: more connections help no service.
const MAX_THREADS: usize = 256;

/// The model at the other end.
pub struct RemoteModel {
    agent: Agent,
    url: String,
    key: Option<String>,
    identity: ModelIdentity,
    num_threads: usize,
}

/// Why there is no completion.
enum Failure {
    /// Whoever is asked next would fail too.
    Fatal(anyhow::Error),
    /// It may work later.
    Away(String),
}

impl RemoteModel {
    /// Takes the model of a configuration that names an endpoint. Connects to nothing yet.
    ///
    /// **Errors**: usage, where the model has no name.
    pub fn new(config: &ModelConfig, max_num_seqs: usize) -> Result<Self> {
        let settings = Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
        let path = Endpoint::ChatCompletions.path().trim_start_matches("/v1");
        Ok(Self {
            agent: settings.into(),
            url: format!("{}{path}", config.endpoint.trim_end_matches('/')),
            key: std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty()),
            identity: generate::remote_identity(config)?,
            num_threads: max_num_seqs.min(MAX_THREADS),
        })
    }

    /// One request, sent until it is answered, refused, or the service stays away.
    fn complete(&self, request: &Request) -> Result<Completion, Failure> {
        let body = match chat_body(request, &self.identity.name) {
            Ok(body) => body.to_string(),
            Err(error) => return Ok(Completion::failed(&request.id, error)),
        };
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            match self.send(&request.id, &body) {
                Err(Failure::Away(what)) if attempt < TRIES => {
                    tracing::debug!("`{}`: {what}; again in {} s", self.url, pause.as_secs());
                    interrupt::check().map_err(|error| Failure::Fatal(error.into()))?;
                    thread::sleep(pause);
                    pause *= 2;
                }
                result => return result,
            }
        }
        unreachable!("the last attempt returns")
    }

    fn send(&self, id: &str, body: &str) -> Result<Completion, Failure> {
        let mut post = self.agent.post(&self.url).header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            post = post.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = post.send(body).map_err(|error| Failure::Away(error.to_string()))?;
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string().map_err(|error| Failure::Away(error.to_string()))?;
        let start: String = text.chars().take(300).collect();
        match status {
            200 => {
                let reply: Value = serde_json::from_str(&text)
                    .map_err(|error| Failure::Away(format!("the reply is not JSON ({error}): {start}")))?;
                read_chat_reply(id, &reply).map_err(Failure::Away)
            }
            401 | 403 | 404 => Err(Failure::Fatal(usage(format!(
                "`{}` answers with status {status}: {start}; see to the address, the model's name and OPENAI_API_KEY",
                self.url
            )))),
            408 | 409 | 425 | 429 | 500.. => Err(Failure::Away(format!("status {status}: {start}"))),
            _ => Ok(Completion::failed(id, format!("status {status}: {start}"))),
        }
    }
}

impl LanguageModel for RemoteModel {
    fn generate(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        on_result: &mut dyn FnMut(Completion) -> Result<()>,
    ) -> Result<()> {
        let remote = &*self;
        thread::scope(|scope| {
            let (to_threads, jobs) = mpsc::channel::<Request>();
            let (to_us, results) = mpsc::channel();
            let jobs = Arc::new(Mutex::new(jobs));
            for _ in 0..remote.num_threads {
                let (jobs, to_us) = (Arc::clone(&jobs), to_us.clone());
                scope.spawn(move || {
                    loop {
                        let Ok(queue) = jobs.lock() else { return };
                        let Ok(request) = queue.recv() else { return };
                        drop(queue);
                        // Nobody listens any more where the stage has failed.
                        if to_us.send(remote.complete(&request)).is_err() {
                            return;
                        }
                    }
                });
            }
            let mut under_way = 0;
            loop {
                while under_way < remote.num_threads {
                    let Some(request) = requests.next() else { break };
                    to_threads.send(request).map_err(|_| anyhow!("the threads of the endpoint are gone"))?;
                    under_way += 1;
                }
                if under_way == 0 {
                    return Ok(());
                }
                let result = results.recv()?;
                under_way -= 1;
                interrupt::check()?;
                match result {
                    Ok(completion) => on_result(completion)?,
                    Err(Failure::Fatal(error)) => return Err(error),
                    Err(Failure::Away(what)) => bail!(
                        "`{}` did not answer in {TRIES} tries ({what}); everything that it answered is kept, run the same \
                         command again to go on",
                        remote.url
                    ),
                }
            }
        })
    }

    fn score(
        &mut self,
        _: &mut dyn Iterator<Item = ScoreRequest>,
        _: &mut dyn FnMut(Score) -> Result<()>,
    ) -> Result<()> {
        bail!("an endpoint has no likelihoods of given texts")
    }

    fn tokenizer(&self) -> &Tokenizer {
        unreachable!("stage 1 hands over text, never tokens")
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
