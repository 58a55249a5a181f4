//! `glan serve`: OpenAI's completions and chat-completions API over one engine.
//!
//! Two threads. The [`worker`] owns the engine: between two steps it takes new requests in and drops those whose client
//! has gone. The HTTP side ([`connection`], [`api`]) runs on a small runtime of its own, reads bodies, tokenises
//! prompts, compiles constraints, and hands each request over with a bounded channel for the way back. Nothing on the HTTP side can hold the engine up: a
//! full channel cancels the request, a full house is answered with 429 before any work is done.
//!
//! Only this module and `glan fetch` open sockets; no other command starts a runtime.

mod api;
mod connection;
mod error;
mod event_stream;
mod metrics;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow};
use tokio::sync::Semaphore;

use self::{metrics::Metrics, worker::Command};
use crate::{
    chat_template::ChatTemplate,
    engine::{Runner, Vocabulary, grammar_cache::GrammarCache, live::Live},
};

/// Threads that tokenise prompts and compile constraints: a long one must not keep the others from being read.
const NUM_PREPARING_THREADS: usize = 4;

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// The model's name in requests and replies.
    pub model: String,
    /// What clients must send as a bearer token, if anything.
    pub api_key: Option<String>,
    /// Sequences that the engine runs together.
    pub max_num_seqs: usize,
    /// Sequences that may wait beyond those.
    pub max_waiting: usize,
    /// Longest body in bytes.
    pub max_body_bytes: usize,
    /// How long running requests may take to finish once a stop was asked for.
    pub grace: Duration,
}

/// What all connections share.
struct Server {
    options: Options,
    /// The key's hash: hashes compare in constant time.
    api_key: Option<blake3::Hash>,
    /// Seconds since 1970 when the server began.
    started: u64,
    vocabulary: Vocabulary,
    grammars: Arc<GrammarCache>,
    chat_template: Option<ChatTemplate>,
    max_model_len: usize,
    commands: mpsc::Sender<Command>,
    /// One permit per sequence, running or waiting.
    slots: Arc<Semaphore>,
    num_slots: usize,
    metrics: Arc<Metrics>,
    /// Whether a stop was asked for.
    is_draining: AtomicBool,
    num_requests: AtomicU64,
}

/// Serves until the process is asked to stop, then lets running requests finish within the grace time.
///
/// `on_ready` is told where the server listens, once it does.
///
/// **Errors**: the address cannot be had, or the engine's thread has died.
pub fn run<R: Runner + Send + 'static>(
    live: Live<R>,
    options: Options,
    on_ready: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(NUM_PREPARING_THREADS)
        .build()
        .context("cannot start the server's runtime")?;
    let address = options.address;
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(address))
        .with_context(|| format!("cannot listen on {address}; is something else there? choose another --port"))?;
    let (server, worker) = start(live, options)?;
    on_ready(listener.local_addr()?)?;
    let is_engine_alive = || !worker.is_finished();
    runtime.block_on(connection::accept_all(listener, &server, &is_engine_alive));
    // A prompt that is still being tokenised has nobody left to answer.
    runtime.shutdown_background();
    // The engine may be gone already; then there is nothing to stop.
    let _ = server.commands.send(Command::Stop);
    worker.join().map_err(|_| anyhow!("the engine's thread has panicked; its message stands above"))
}

/// Puts the engine on its thread.
fn start<R: Runner + Send + 'static>(live: Live<R>, options: Options) -> Result<(Arc<Server>, JoinHandle<()>)> {
    let num_slots = options.max_num_seqs.saturating_add(options.max_waiting).min(Semaphore::MAX_PERMITS);
    let metrics = Arc::new(Metrics::new(&options.model, live.load()));
    let (commands, inbox) = mpsc::channel();
    let server = Arc::new(Server {
        api_key: options.api_key.as_ref().map(|key| blake3::hash(key.as_bytes())),
        started: seconds_since_1970(),
        vocabulary: live.vocabulary().clone(),
        grammars: live.grammars(),
        chat_template: live.chat_template().cloned(),
        max_model_len: live.max_model_len(),
        commands,
        slots: Arc::new(Semaphore::new(num_slots)),
        num_slots,
        metrics: Arc::clone(&metrics),
        is_draining: AtomicBool::new(false),
        num_requests: AtomicU64::new(0),
        options,
    });
    let worker = std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || worker::run(live, &inbox, &metrics))
        .context("cannot start the engine's thread")?;
    Ok((server, worker))
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
