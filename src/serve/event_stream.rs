//! The body of a streamed reply: what the engine says, as server-sent events.

use std::{
    io,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::{error::ApiError, worker::Reply};
use crate::requests::openai::{ChunkWriter, ErrorBody, error_status};

/// Events that came while the client was busy go out together, up to about this many bytes.
const FRAME_BYTES: usize = 16 << 10;

/// A stream of events. Dropping it (the client has gone) closes the channel, which cancels the request.
pub struct EventStream {
    replies: mpsc::Receiver<Reply>,
    writer: ChunkWriter,
    has_constraint: bool,
}

impl EventStream {
    /// Events of a request that the engine has admitted.
    pub fn new(replies: mpsc::Receiver<Reply>, writer: ChunkWriter, has_constraint: bool) -> Self {
        Self { replies, writer, has_constraint }
    }

    /// The next events; `None` is the end.
    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut text = String::new();
        while !self.writer.is_finished() && text.len() < FRAME_BYTES {
            match self.replies.poll_recv(context) {
                Poll::Ready(Some(reply)) => self.write(reply, &mut text),
                // The engine gave this client up: whoever still reads must not take what there is for the whole.
                Poll::Ready(None) => return Poll::Ready(Some(Err(io::Error::other("the request was dropped")))),
                Poll::Pending if text.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(Bytes::from(text)))))
    }

    fn write(&mut self, reply: Reply, out: &mut String) {
        match reply {
            Reply::Admitted => {}
            Reply::Text { index, text, logprobs } => self.writer.text(index, &text, &logprobs, out),
            Reply::Done { index, rest, completion } if completion.error.is_none() => {
                self.writer.finish(index, &rest, &completion, out);
            }
            Reply::Done { completion, .. } => {
                let status = error_status(&completion, self.has_constraint);
                self.writer.fail(&ErrorBody::of_completion(&completion, status), out);
            }
            Reply::Refused(error) => self.writer.fail(&ErrorBody::invalid_request(&error), out),
            Reply::Stopped => self.writer.fail(&ApiError::stopping().body, out),
            Reply::Failed(message) => self.writer.fail(&ApiError::internal(message).body, out),
        }
    }
}
