//! Connections: accepting them, their limits of number and time, and the end of all of them.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, Sleep, sleep, timeout},
};

use super::{Server, api, worker::Command};
use crate::interrupt;

/// Most connections at once; further clients wait in the system's own queue. Each may hold one body.
const MAX_CONNECTIONS: usize = 256;
/// How long a request's head may take, and how long a connection may lie idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body may take.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take nothing of what it is sent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the accepting loop looks whether it should end.
const TICK: Duration = Duration::from_millis(50);
/// How long a refusal may take to reach its client when the server ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Accepts connections until a stop is asked for or the engine dies, then ends them: those in the middle of a request
/// may finish it within the grace time.
pub async fn accept_all(listener: TcpListener, server: &Arc<Server>, is_engine_alive: &dyn Fn() -> bool) {
    let (stop, is_stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    while interrupt::check().is_ok() && is_engine_alive() {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            sleep(TICK).await;
            continue;
        }
        match timeout(TICK, listener.accept()).await {
            Ok(Ok((stream, _))) => {
                connections.spawn(serve_connection(stream, Arc::clone(server), is_stopping.clone()));
            }
            Ok(Err(error)) => {
                // Of the client, or too many open files; neither is a reason to end.
                tracing::warn!("a connection could not be accepted: {error}");
                sleep(TICK).await;
            }
            Err(_) => {}
        }
    }
    drop(listener);
    server.is_draining.store(true, Ordering::Relaxed);
    stop.send_replace(true);
    let grace = if is_engine_alive() { server.options.grace } else { Duration::ZERO };
    if !is_empty_within(&mut connections, grace).await {
        tracing::warn!("the grace time is over; requests that still run are dropped");
        // Fails only when the engine is gone, and with it every request.
        let _ = server.commands.send(Command::Stop);
        is_empty_within(&mut connections, LAST_WORDS).await;
    }
    connections.shutdown().await;
}

/// Waits until all connections are closed; a second request to stop ends the process from the signal's own thread.
async fn is_empty_within(connections: &mut JoinSet<()>, limit: Duration) -> bool {
    timeout(limit, async { while connections.join_next().await.is_some() {} }).await.is_ok()
}

async fn serve_connection(stream: TcpStream, server: Arc<Server>, mut is_stopping: watch::Receiver<bool>) {
    // Events are small, and each should arrive when it is made. Where this fails they come a little later.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(api::handle(server, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(Impatient::new(stream), service);
    let mut connection = pin!(connection);
    let mut stopping = pin!(async move {
        // The sender outlives all connections; should it not, this is an end as well.
        let _ = is_stopping.wait_for(|&stops| stops).await;
    });
    let mut has_stopped = false;
    let ended = poll_fn(|context| {
        if !has_stopped && stopping.as_mut().poll(context).is_ready() {
            has_stopped = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(context)
    });
    if let Err(error) = ended.await {
        // Garbage, a client that has gone, one that was too slow: of interest to whoever looks for it.
        tracing::debug!("a connection ended early: {error}");
    }
}

/// A connection that fails when its other end takes nothing for too long; reading has limits elsewhere.
struct Impatient {
    stream: TokioIo<TcpStream>,
    deadline: Pin<Box<Sleep>>,
    is_waiting: bool,
}

impl Impatient {
    fn new(stream: TcpStream) -> Self {
        Self { stream: TokioIo::new(stream), deadline: Box::pin(sleep(WRITE_TIMEOUT)), is_waiting: false }
    }

    fn watch<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_waiting = false;
            return written;
        }
        if !self.is_waiting {
            self.is_waiting = true;
            self.deadline.as_mut().reset(Instant::now() + WRITE_TIMEOUT);
        }
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl Read for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.watch(context, written)
    }
}
