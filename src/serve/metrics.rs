//! What `/metrics` tells, in Prometheus' text format and under vLLM's names (with our prefix).

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{engine::live::Load, language_model::FinishReason};

/// Upper bounds in seconds: of waiting for the first token, and of a whole answer.
const LATENCY_BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Upper bounds in seconds: of one further token.
const TOKEN_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// By itself.
    Stop,
    /// At its longest.
    Length,
    /// The client has gone, or the server ends.
    Abort,
    /// The engine could not go on.
    Error,
}

impl Ending {
    /// The ending of a completion.
    pub fn of(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
            FinishReason::Error => Self::Error,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// Counters of the whole server.
pub struct Metrics {
    model: String,
    state: Mutex<State>,
}

struct State {
    load: Load,
    endings: BTreeMap<Ending, usize>,
    responses: BTreeMap<u16, u64>,
    first_token: Histogram,
    further_token: Histogram,
    answer: Histogram,
}

impl Metrics {
    /// All at zero.
    pub fn new(model: &str, load: Load) -> Self {
        let endings = [Ending::Stop, Ending::Length, Ending::Abort, Ending::Error].map(|ending| (ending, 0));
        let state = State {
            load,
            endings: endings.into(),
            responses: BTreeMap::new(),
            first_token: Histogram::new(&LATENCY_BUCKETS),
            further_token: Histogram::new(&TOKEN_BUCKETS),
            answer: Histogram::new(&LATENCY_BUCKETS),
        };
        Self { model: model.to_owned(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counters are whole after every statement, so a thread that died with the lock has broken nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the engine is doing now.
    pub fn set_load(&self, load: Load) {
        self.state().load = load;
    }

    /// So many answers have ended.
    pub fn count_endings(&self, ending: Ending, count: usize) {
        *self.state().endings.entry(ending).or_default() += count;
    }

    /// An HTTP response has begun.
    pub fn count_response(&self, status: u16) {
        *self.state().responses.entry(status).or_default() += 1;
    }

    /// A request has its first token.
    pub fn observe_first_token(&self, after: Duration) {
        self.state().first_token.observe(after.as_secs_f64());
    }

    /// An answer is complete.
    pub fn observe_answer(&self, received: Instant, first_token: Instant, num_tokens: usize) {
        let mut state = self.state();
        state.answer.observe(received.elapsed().as_secs_f64());
        if num_tokens > 1 {
            state.further_token.observe(first_token.elapsed().as_secs_f64() / (num_tokens - 1) as f64);
        }
    }

    /// The page.
    pub fn render(&self) -> String {
        let state = self.state();
        let load = state.load;
        let model = self.model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let label = format!("model_name=\"{model}\"");
        let mut page = Page { text: String::new(), label };
        let used = load.num_blocks_used as f64;
        page.single("num_requests_running", "gauge", "Sequences in the batch.", load.num_running as f64);
        page.single("num_requests_waiting", "gauge", "Sequences that wait for a seat.", load.num_waiting as f64);
        page.single("kv_cache_blocks_used", "gauge", "Blocks of the key/value cache that sequences own.", used);
        page.single("kv_cache_blocks", "gauge", "Blocks of the key/value cache.", load.num_blocks as f64);
        let share = used / (load.num_blocks.max(1) as f64);
        page.single("kv_cache_usage_perc", "gauge", "Share of the blocks in use, 0 to 1.", share);
        page.single("num_preemptions_total", "counter", "Sequences put back for memory.", load.num_preemptions as f64);
        page.single("prompt_tokens_total", "counter", "Tokens of prompts read.", load.prompt_tokens as f64);
        page.single("generation_tokens_total", "counter", "Tokens generated.", load.generation_tokens as f64);
        page.head("request_success_total", "counter", "Answers by how they ended.");
        for (ending, count) in &state.endings {
            page.line("request_success_total", &format!("finished_reason=\"{}\"", ending.name()), *count as f64);
        }
        page.head("http_responses_total", "counter", "Responses by status.");
        for (status, count) in &state.responses {
            page.line("http_responses_total", &format!("code=\"{status}\""), *count as f64);
        }
        page.histogram("time_to_first_token_seconds", "From request to first token.", &state.first_token);
        page.histogram("time_per_output_token_seconds", "Per token after the first.", &state.further_token);
        page.histogram("e2e_request_latency_seconds", "From request to complete answer.", &state.answer);
        page.text
    }
}

/// Counts by upper bound.
struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: the last is unbounded.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn observe(&mut self, value: f64) {
        let place = self.bounds.iter().position(|&bound| value <= bound).unwrap_or(self.bounds.len());
        self.counts[place] += 1;
        self.sum += value;
    }
}

/// The page while it is written.
struct Page {
    text: String,
    label: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = write!(self.text, "# HELP glan_{name} {help}\n# TYPE glan_{name} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let separator = if labels.is_empty() { "" } else { "," };
        let _ = writeln!(self.text, "glan_{name}{{{}{separator}{labels}}} {value}", self.label);
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let mut total = 0;
        let bounds = histogram.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&histogram.counts) {
            total += count;
            self.line(&format!("{name}_bucket"), &format!("le=\"{bound}\""), total as f64);
        }
        self.line(&format!("{name}_sum"), "", histogram.sum);
        self.line(&format!("{name}_count"), "", total as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_prometheus_text_with_cumulative_buckets() {
        let metrics = Metrics::new("a \"b\"", Load { num_blocks: 8, num_blocks_used: 2, ..Load::default() });
        metrics.observe_first_token(Duration::from_millis(7));
        metrics.observe_first_token(Duration::from_secs(1000));
        metrics.count_endings(Ending::Abort, 3);
        metrics.count_response(429);
        let page = metrics.render();
        for line in [
            r#"glan_kv_cache_usage_perc{model_name="a \"b\""} 0.25"#,
            r#"glan_request_success_total{model_name="a \"b\"",finished_reason="abort"} 3"#,
            r#"glan_http_responses_total{model_name="a \"b\"",code="429"} 1"#,
            r#"glan_time_to_first_token_seconds_bucket{model_name="a \"b\"",le="0.005"} 0"#,
            r#"glan_time_to_first_token_seconds_bucket{model_name="a \"b\"",le="0.01"} 1"#,
            r#"glan_time_to_first_token_seconds_bucket{model_name="a \"b\"",le="300"} 1"#,
            r#"glan_time_to_first_token_seconds_bucket{model_name="a \"b\"",le="+Inf"} 2"#,
            r#"glan_time_to_first_token_seconds_count{model_name="a \"b\""} 2"#,
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        // Every sample belongs to a family that was announced.
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(page.contains(&format!("# TYPE {family} ")) || page.contains(&format!("# TYPE {name} ")), "{line}");
        }
    }
}
