//! The engine's thread: takes requests in between two steps, and hands out what each step brought.
//!
//! It never waits for a client. A channel that is full belongs to a client that reads too slowly, a closed one to a
//! client that has gone; both lose their sequences, and the blocks are free for the next step.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::mpsc::{Receiver, TryRecvError},
    time::Instant,
};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::metrics::{Ending, Metrics};
use crate::{
    engine::{
        Runner,
        live::{Event, Live},
    },
    language_model::{Completion, FinishReason, Request, TokenLogprob},
};

/// What the HTTP side asks of the engine.
pub enum Command {
    /// Serve a request.
    Serve(Job),
    /// Drop everything and end.
    Stop,
}

/// A request with the way back to its client.
pub struct Job {
    /// One per prompt.
    pub requests: Vec<Request>,
    /// Whether text is sent as it is made.
    pub is_streamed: bool,
    /// The way back. The client has gone when it is closed.
    pub replies: mpsc::Sender<Reply>,
    /// The places that the request takes; given back when this is dropped.
    pub places: OwnedSemaphorePermit,
    /// When the request came.
    pub received: Instant,
}

/// What the engine says to a client. Closed without [`Reply::Done`] for every answer: the request was dropped.
#[derive(Debug)]
pub enum Reply {
    /// The request is queued.
    Admitted,
    /// It cannot be served; why.
    Refused(anyhow::Error),
    /// New text of a streamed answer.
    Text {
        /// Which answer.
        index: usize,
        /// The text; may be empty where there are log-probabilities.
        text: String,
        /// Those of the new tokens, where asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// An answer is complete.
    Done {
        /// Which answer.
        index: usize,
        /// The end of its text, which no `Text` has told.
        rest: String,
        /// All of it.
        completion: Box<Completion>,
    },
    /// Nothing more will come: the server ends.
    Stopped,
    /// Nothing more will come: the engine has failed; why.
    Failed(String),
}

/// A request in the engine.
struct Running {
    /// Its sequences, one per answer in order.
    sequence_ids: Range<u64>,
    num_unfinished: usize,
    is_streamed: bool,
    replies: mpsc::Sender<Reply>,
    /// Held for what its drop does.
    _places: OwnedSemaphorePermit,
    received: Instant,
    first_token: Option<Instant>,
}

/// The engine with the requests in it, by the id of their first sequence.
struct Worker<'a, R> {
    live: Live<R>,
    running: BTreeMap<u64, Running>,
    metrics: &'a Metrics,
}

/// Serves until [`Command::Stop`] comes or nobody can send any more.
pub fn run<R: Runner>(live: Live<R>, commands: &Receiver<Command>, metrics: &Metrics) {
    let mut worker = Worker { live, running: BTreeMap::new(), metrics };
    loop {
        let command = if worker.live.is_idle() {
            commands.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            commands.try_recv()
        };
        match command {
            Ok(Command::Serve(job)) => {
                worker.take(job);
                // More may be waiting; all of them join the same step.
                continue;
            }
            Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return worker.stop(),
            Err(TryRecvError::Empty) => {}
        }
        worker.drop_abandoned();
        worker.step();
        metrics.set_load(worker.live.load());
    }
}

impl<R: Runner> Worker<'_, R> {
    /// Queues all prompts of a request, or none.
    fn take(&mut self, job: Job) {
        let Job { requests, is_streamed, replies, places, received } = job;
        let mut sequence_ids: Option<Range<u64>> = None;
        for request in &requests {
            match self.live.submit(request, is_streamed) {
                // Nothing is submitted in between, so the ids of one request follow each other.
                Ok(ids) => sequence_ids = Some(sequence_ids.map_or(ids.start, |all| all.start)..ids.end),
                Err(error) => {
                    sequence_ids.into_iter().flatten().for_each(|id| self.live.cancel(id));
                    // Whoever asked may have gone.
                    let _ = replies.try_send(Reply::Refused(error));
                    return;
                }
            }
        }
        let Some(sequence_ids) = sequence_ids else { return };
        let _ = replies.try_send(Reply::Admitted);
        let running = Running {
            num_unfinished: requests.iter().map(|request| request.sampling.n).sum(),
            sequence_ids,
            is_streamed,
            replies,
            _places: places,
            received,
            first_token: None,
        };
        self.running.insert(running.sequence_ids.start, running);
        self.metrics.set_load(self.live.load());
    }

    fn drop_abandoned(&mut self) {
        let gone: Vec<u64> =
            self.running.iter().filter(|(_, running)| running.replies.is_closed()).map(|(&id, _)| id).collect();
        for first_id in gone {
            self.cancel(first_id);
        }
    }

    /// Drops a request with its sequences.
    fn cancel(&mut self, first_id: u64) {
        let Some(running) = self.running.remove(&first_id) else { return };
        running.sequence_ids.for_each(|id| self.live.cancel(id));
        self.metrics.count_endings(Ending::Abort, running.num_unfinished);
    }

    fn step(&mut self) {
        if self.live.is_idle() {
            return;
        }
        match self.live.step() {
            Ok(events) => {
                // Before the events are told: who has an answer must not find it among the running.
                self.metrics.set_load(self.live.load());
                events.into_iter().for_each(|event| self.deliver(event));
            }
            Err(error) => {
                tracing::error!("the engine failed, {} requests are lost: {error:#}", self.running.len());
                self.end_all(Ending::Error, || Reply::Failed(format!("the engine failed: {error:#}")));
            }
        }
    }

    fn deliver(&mut self, event: Event) {
        let (Event::Progress { sequence_id, .. } | Event::Finished { sequence_id, .. }) = event;
        let Some((&first_id, running)) = self.running.range_mut(..=sequence_id).next_back() else { return };
        if !running.sequence_ids.contains(&sequence_id) {
            return;
        }
        let index = (sequence_id - first_id) as usize;
        let is_sent = match event {
            Event::Progress { text, logprobs, .. } => {
                if running.first_token.is_none() {
                    running.first_token = Some(Instant::now());
                    self.metrics.observe_first_token(running.received.elapsed());
                }
                let is_told = running.is_streamed && !(text.is_empty() && logprobs.is_empty());
                !is_told || running.replies.try_send(Reply::Text { index, text, logprobs }).is_ok()
            }
            Event::Finished { completion, rest, .. } => {
                running.num_unfinished -= 1;
                self.metrics.count_endings(Ending::of(completion.finish_reason), 1);
                if completion.finish_reason != FinishReason::Error {
                    let first_token = running.first_token.unwrap_or(running.received);
                    self.metrics.observe_answer(running.received, first_token, completion.token_ids.len());
                }
                let replies = running.replies.clone();
                if running.num_unfinished == 0 {
                    // Before the last answer is sent: who has it may ask again at once, and finds the places free.
                    self.running.remove(&first_id);
                }
                replies.try_send(Reply::Done { index, rest, completion: Box::new(completion) }).is_ok()
            }
        };
        if !is_sent {
            self.cancel(first_id);
        }
    }

    fn stop(mut self) {
        self.live.clear();
        self.end_all(Ending::Abort, || Reply::Stopped);
        self.metrics.set_load(self.live.load());
    }

    fn end_all(&mut self, ending: Ending, reply: impl Fn() -> Reply) {
        for running in std::mem::take(&mut self.running).into_values() {
            self.metrics.count_endings(ending, running.num_unfinished);
            // Whoever does not hear it sees the channel closed.
            let _ = running.replies.try_send(reply());
        }
    }
}
