//! The JSON-lines files of `glan complete` and `glan score`: one request per line in, one result per answer out.
//!
//! *Reads* a file of requests. *Writes* results in the order of the requests, as they come. *Rejects* nothing: a line
//! that cannot be served (damaged, out of range, too long) yields a row whose `error` names line and field.
//! *Resumes* after a kill: finished rows are kept and only the rest is computed.

mod complete;
mod fields;
mod job;
mod lines;
pub mod openai;
mod score;
mod sink;

pub use self::{
    complete::{CompleteJob, CompletionRow},
    fields::{FieldError, Fields},
    job::{Job, Summary, Tally, run},
    score::{ScoreJob, ScoreRow, encode_pair},
};
