//! The bytes of an answer, until its caller has read them.
//!
//! The HTTP/2 server takes a frame of an answer, and asks for the next one as soon as it can send the first byte of it. It
//! keeps frames that it can't send yet, for the window of the stream or for the socket, also after it was given the end of
//! the answer. So an answer is handed out in small chunks, and few at a time; it knows when a chunk is sent, as that is
//! dropped then. It waits for its caller while the server has a chunk, or doesn't ask for the next one, and is over when
//! the server has none of it.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::task::AtomicWaker;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::Connection;

/// Maximum size of a frame that is handed to the server.
const CHUNK: usize = 16 << 10;

/// Maximum size of the chunks of an answer that the server has. Whoever reads well keeps the socket busy with it.
const CHUNKS_MAX: usize = 64 << 10;

/// What an answer holds until it is sent.
pub type Held = Box<dyn Any + Send>;

/// The body of an answer, which ends if its caller doesn't read it.
pub struct Answer {
    state: Arc<State>,
}

/// An answer that is not sent yet. Its chunks keep it.
pub(super) struct State {
    progress: Mutex<Progress>,
    held: Mutex<Option<Held>>,
    /// Bytes of the chunks that the server has. Changes while `progress` is locked.
    unsent: AtomicUsize,
    /// Waits until a chunk is sent.
    server: AtomicWaker,
    connection: Connection,
    /// Its key among the answers of the connection.
    key: u64,
}

struct Progress {
    /// `None` once it has ended.
    body: Option<Body>,
    /// The rest of a frame that is handed out in chunks.
    rest: Bytes,
    /// When the first of the chunks was handed out, or the last one sent, while the caller has to read on.
    waits_since: Option<Instant>,
    /// Whether the server has asked for the next frame.
    is_asked: bool,
    was_cut: bool,
    /// Whether the server has the error of an answer that was cut.
    is_told: bool,
}

/// A part of an answer that the server has.
struct Chunk {
    data: Bytes,
    answer: Arc<State>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        {
            let progress = &mut *self.answer.progress.lock();
            let unsent = self.answer.unsent.fetch_sub(self.data.len(), Ordering::AcqRel) - self.data.len();
            if unsent == 0 && progress.is_asked {
                progress.waits_since = None;
            } else if let Some(since) = &mut progress.waits_since {
                *since = Instant::now();
            }
        }
        self.answer.server.wake();
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.connection.0.answers.lock().remove(&self.key);
    }
}

impl State {
    /// Time for which the answer has waited for its caller; `None` while it waits for nothing.
    pub(super) fn waits(&self, now: Instant) -> Option<Duration> {
        let since = self.progress.lock().waits_since;
        since.map(|since| now.saturating_duration_since(since))
    }

    /// Whether the answer was ended because its caller didn't read it.
    pub(super) fn was_cut(&self) -> bool {
        self.progress.lock().was_cut
    }

    /// Ends the answer and frees what it holds, also if the server keeps a chunk. A caller who reads on gets an error.
    pub(super) fn cut(&self) {
        let freed = {
            let progress = &mut *self.progress.lock();
            progress.was_cut = true;
            progress.waits_since = None;
            (progress.body.take(), std::mem::take(&mut progress.rest))
        };
        drop(freed);
        drop(self.held.lock().take());
        self.server.wake();
    }

    /// The next chunk of a frame.
    fn chunk(self: &Arc<Self>, progress: &mut Progress) -> Bytes {
        let data = if progress.rest.len() <= CHUNK {
            std::mem::take(&mut progress.rest)
        } else {
            // A copy: a slice would keep the whole frame in memory.
            Bytes::copy_from_slice(&progress.rest.split_to(CHUNK))
        };
        progress.is_asked = false;
        progress.waits_since.get_or_insert_with(Instant::now);
        self.unsent.fetch_add(data.len(), Ordering::AcqRel);
        Bytes::from_owner(Chunk {
            data,
            answer: self.clone(),
        })
    }
}

impl Answer {
    /// The body of a response on a connection. What it holds is free when the answer is sent.
    pub fn body(body: Body, connection: &Connection, held: Option<Held>) -> Body {
        // A response of headers only has its status there, and the headers must end the stream.
        if body.is_end_stream() {
            return body;
        }
        let key = connection.0.next_answer.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(State {
            progress: Mutex::new(Progress {
                body: Some(body),
                rest: Bytes::new(),
                waits_since: None,
                is_asked: false,
                was_cut: false,
                is_told: false,
            }),
            held: Mutex::new(held),
            unsent: AtomicUsize::new(0),
            server: AtomicWaker::new(),
            connection: connection.clone(),
            key,
        });
        connection.0.answers.lock().insert(key, Arc::downgrade(&state));
        Body::new(Self { state })
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let progress = &mut *self.state.progress.lock();
        if progress.was_cut && !progress.is_told {
            progress.is_told = true;
            return Poll::Ready(Some(end_with(&Status::new(
                Code::ResourceExhausted,
                "the caller did not read the answer in time; read faster, or ask for less at a time",
            ))));
        }
        let is_full = || self.state.unsent.load(Ordering::Acquire) >= CHUNKS_MAX;
        if is_full() {
            self.state.server.register(cx.waker());
            if is_full() {
                return Poll::Pending;
            }
        }
        progress.is_asked = true;
        if self.state.unsent.load(Ordering::Acquire) == 0 {
            progress.waits_since = None;
        }
        if progress.rest.is_empty() {
            let Some(body) = &mut progress.body else {
                return Poll::Ready(None);
            };
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
                // A cut wakes the server too.
                self.state.server.register(cx.waker());
                return Poll::Pending;
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => progress.rest = data,
                Some(Ok(Err(trailers))) => {
                    progress.body = None;
                    return Poll::Ready(Some(Ok(trailers)));
                }
                Some(Err(status)) => {
                    progress.body = None;
                    return Poll::Ready(Some(Err(status)));
                }
                None => {
                    progress.body = None;
                    return Poll::Ready(None);
                }
            }
        }
        let chunk = self.state.chunk(progress);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        let progress = self.state.progress.lock();
        (!progress.was_cut || progress.is_told)
            && progress.rest.is_empty()
            && progress.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// The last frame of an answer: its status.
fn end_with(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

/// A tower layer that ends answers which their callers don't read.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnswerLayer;

impl<S> Layer<S> for AnswerLayer {
    type Service = Answering<S>;

    fn layer(&self, inner: S) -> Answering<S> {
        Answering { inner }
    }
}

/// The service that [`AnswerLayer`] creates.
#[derive(Debug, Clone)]
pub struct Answering<S> {
    inner: S,
}

impl<S, A> Service<Request<A>> for Answering<S>
where
    S: Service<Request<A>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let connection = request.extensions().get::<Connection>().cloned();
        let pending = connection.as_ref().map(Connection::begin_call);
        let response = self.inner.call(request);
        Box::pin(async move {
            let _pending = pending;
            let response = response.await?;
            Ok(match connection {
                Some(connection) => response.map(|body| Answer::body(body, &connection, None)),
                None => response,
            })
        })
    }
}
