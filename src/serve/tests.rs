//! Tests of the engine's thread with clients that go, stall, or ask for what cannot be served.

use std::{
    sync::{Arc, mpsc as inbox},
    thread::JoinHandle,
    time::Instant,
};

use tokio::sync::{Semaphore, mpsc};

use super::{
    metrics::Metrics,
    worker::{self, Command, Job, Reply},
};
use crate::{
    engine::{live::Live, test_support::Toy},
    language_model::{Completion, LanguageModel, Prompt, Request, SamplingParams},
};

/// The engine's thread with a toy model.
struct House {
    commands: inbox::Sender<Command>,
    metrics: Arc<Metrics>,
    slots: Arc<Semaphore>,
    thread: JoinHandle<()>,
}

const NUM_SLOTS: usize = 20;

impl House {
    fn open() -> Self {
        let live = Live::new(Toy { eos_bonus: -100.0, ..Toy::default() }.engine());
        let metrics = Arc::new(Metrics::new("toy", live.load()));
        let (commands, inbox) = inbox::channel();
        let shared = Arc::clone(&metrics);
        let thread = std::thread::spawn(move || worker::run(live, &inbox, &shared));
        Self { commands, metrics, slots: Arc::new(Semaphore::new(NUM_SLOTS)), thread }
    }

    fn send(&self, request: Request, is_streamed: bool, room: usize) -> mpsc::Receiver<Reply> {
        let (replies, receiver) = mpsc::channel(room);
        let wanted = u32::try_from(request.sampling.n).unwrap();
        let places = Arc::clone(&self.slots).try_acquire_many_owned(wanted).unwrap();
        let job = Job { requests: vec![request], is_streamed, replies, places, received: Instant::now() };
        assert!(self.commands.send(Command::Serve(job)).is_ok());
        receiver
    }

    /// Stops the thread; the last page of its metrics.
    fn close(self) -> String {
        assert!(self.commands.send(Command::Stop).is_ok());
        self.thread.join().unwrap();
        assert_eq!(self.slots.available_permits(), NUM_SLOTS, "every place was given back");
        let page = self.metrics.render();
        for gauge in ["num_requests_running", "num_requests_waiting", "kv_cache_blocks_used"] {
            assert!(page.contains(&format!("glan_{gauge}{{model_name=\"toy\"}} 0\n")), "{gauge} in\n{page}");
        }
        page
    }
}

fn request(prompt: &str, max_new_tokens: usize, n: usize) -> Request {
    let sampling = SamplingParams { max_new_tokens, temperature: 0.9, n, seed: 3, ..SamplingParams::default() };
    Request { id: prompt.into(), prompt: Prompt::Text(prompt.into()), sampling }
}

fn alone(request: &Request) -> Vec<Completion> {
    let mut completions = Vec::new();
    let mut keep = |completion| {
        completions.push(completion);
        Ok(())
    };
    let mut engine = Toy { eos_bonus: -100.0, ..Toy::default() }.engine();
    engine.generate(&mut std::iter::once(request.clone()), &mut keep).unwrap();
    completions.sort_by_key(|completion| completion.index);
    completions
}

/// Everything that is said until the channel closes.
fn listen(mut replies: mpsc::Receiver<Reply>) -> Vec<Reply> {
    std::iter::from_fn(|| replies.blocking_recv()).collect()
}

fn completions(replies: &[Reply]) -> Vec<Completion> {
    let mut found: Vec<Completion> = replies
        .iter()
        .filter_map(|reply| match reply {
            Reply::Done { completion, .. } => Some((**completion).clone()),
            _ => None,
        })
        .collect();
    found.sort_by_key(|completion| completion.index);
    found
}

fn endings(page: &str, reason: &str) -> u64 {
    let start = format!("glan_request_success_total{{model_name=\"toy\",finished_reason=\"{reason}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
}

#[test]
fn everybody_gets_their_own_answer() {
    let house = House::open();
    let requests = [request("one", 30, 2), request("the second", 20, 1), request("3", 40, 3)];
    let ways: Vec<_> = requests.iter().map(|request| house.send(request.clone(), true, 1000)).collect();
    for (request, way) in requests.iter().zip(ways) {
        let replies = listen(way);
        assert!(matches!(replies[0], Reply::Admitted));
        assert_eq!(completions(&replies), alone(request));
        for (index, completion) in alone(request).iter().enumerate() {
            let told: String = replies
                .iter()
                .map(|reply| match reply {
                    Reply::Text { index: which, text, .. } if *which == index => text.as_str(),
                    Reply::Done { index: which, rest, .. } if *which == index => rest.as_str(),
                    _ => "",
                })
                .collect();
            assert_eq!(told, completion.text);
        }
    }
    assert_eq!(endings(&house.close(), "length"), 6);
}

#[test]
fn who_stalls_or_goes_is_dropped_and_the_others_do_not_notice() {
    let house = House::open();
    let mut stalled = house.send(request("stalled", 50, 2), true, 4);
    drop(house.send(request("gone", 50, 3), false, 10));
    let kept = request("kept", 50, 2);
    assert_eq!(completions(&listen(house.send(kept.clone(), false, 10))), alone(&kept));
    // What was sent before the channel was full is still there; then it ends without an answer.
    let replies: Vec<Reply> = std::iter::from_fn(|| stalled.blocking_recv()).collect();
    assert_eq!((replies.len(), completions(&replies).len()), (4, 0));
    let page = house.close();
    assert_eq!((endings(&page, "abort"), endings(&page, "length")), (5, 2));
}

#[test]
fn what_cannot_be_served_is_refused_as_a_whole() {
    let house = House::open();
    let (replies, way) = mpsc::channel(10);
    let places = Arc::clone(&house.slots).try_acquire_many_owned(2).unwrap();
    let requests = vec![request("good", 5, 1), request(&"x".repeat(99), 5, 1)];
    let job = Job { requests, is_streamed: false, replies, places, received: Instant::now() };
    assert!(house.commands.send(Command::Serve(job)).is_ok());
    let replies = listen(way);
    assert!(
        matches!(&replies[..], [Reply::Refused(error)] if error.to_string().contains("the context of 60")),
        "{replies:?}"
    );
    house.close();
}

#[test]
fn a_stop_says_so_to_whoever_waits() {
    let house = House::open();
    let ways: Vec<_> = (0..3).map(|_| house.send(request("long", 50, 5), false, 10)).collect();
    let page = house.close();
    let mut num_unfinished = 0;
    for way in ways {
        let replies = listen(way);
        if !matches!(replies.last(), Some(Reply::Done { .. })) {
            assert!(matches!(replies.last(), Some(Reply::Stopped)), "{replies:?}");
            num_unfinished += 5 - completions(&replies).len();
        }
    }
    assert_eq!(endings(&page, "abort"), num_unfinished as u64);
}
