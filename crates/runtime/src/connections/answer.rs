//! The bytes of an answer, until its caller has read them.
//!
//! The HTTP/2 server takes a frame of an answer, and asks for the next one when it could send that: so an answer that is
//! not asked for its next frame waits for its caller. It is handed out in small chunks, as the server keeps a frame that
//! it can't send.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::Connection;

/// Maximum size of a frame that is handed to the server.
const CHUNK: usize = 16 << 10;

/// What an answer holds until it is sent.
pub type Held = Box<dyn Any + Send>;

/// The body of an answer, which ends if its caller doesn't read it.
pub struct Answer {
    state: Arc<State>,
    connection: Connection,
    key: u64,
}

pub(super) struct State(Mutex<Progress>);

struct Progress {
    /// `None` once it has ended.
    body: Option<Body>,
    /// The rest of a frame that is handed out in chunks.
    rest: Bytes,
    held: Option<Held>,
    /// When the last chunk was handed out, while no more has been asked for.
    handed_at: Option<Instant>,
    was_cut: bool,
}

impl State {
    /// Time for which the answer has waited for its caller; `None` while it waits for nothing.
    pub(super) fn waits(&self, now: Instant) -> Option<Duration> {
        self.0
            .lock()
            .handed_at
            .map(|handed_at| now.saturating_duration_since(handed_at))
    }

    /// Ends the answer and frees what it holds. A caller who reads on gets an error.
    pub(super) fn cut(&self) {
        let progress = &mut *self.0.lock();
        progress.was_cut = true;
        progress.handed_at = None;
        let freed = (
            progress.body.take(),
            progress.held.take(),
            std::mem::take(&mut progress.rest),
        );
        drop(freed);
    }
}

impl Answer {
    /// The body of a response on a connection. What it holds is free when the answer is sent.
    pub fn body(body: Body, connection: &Connection, held: Option<Held>) -> Body {
        // A response of headers only has its status there, and the headers must end the stream.
        if body.is_end_stream() {
            return body;
        }
        let state = Arc::new(State(Mutex::new(Progress {
            body: Some(body),
            rest: Bytes::new(),
            held,
            handed_at: None,
            was_cut: false,
        })));
        let key = connection.0.next_answer.fetch_add(1, Ordering::Relaxed);
        connection.0.answers.lock().insert(key, state.clone());
        Body::new(Self {
            state,
            connection: connection.clone(),
            key,
        })
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let progress = &mut *self.state.0.lock();
        if progress.was_cut {
            progress.was_cut = false;
            return Poll::Ready(Some(end_with(&Status::new(
                Code::ResourceExhausted,
                "the caller did not read the answer in time; read faster, or ask for less at a time",
            ))));
        }
        progress.handed_at = None;
        if progress.rest.is_empty() {
            let Some(body) = &mut progress.body else {
                return Poll::Ready(None);
            };
            match Pin::new(body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => progress.rest = data,
                    Err(trailers) => {
                        self.connection.end(progress);
                        return Poll::Ready(Some(Ok(trailers)));
                    }
                },
                Poll::Ready(ended) => {
                    self.connection.end(progress);
                    return Poll::Ready(ended);
                }
            }
        }
        let chunk = if progress.rest.len() <= CHUNK {
            std::mem::take(&mut progress.rest)
        } else {
            // A copy: a slice would keep the whole frame in memory.
            Bytes::copy_from_slice(&progress.rest.split_to(CHUNK))
        };
        progress.handed_at = Some(Instant::now());
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        let progress = self.state.0.lock();
        !progress.was_cut
            && progress.rest.is_empty()
            && progress.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.0.answers.lock().remove(&self.key);
        // Also after the last chunk of a body without trailers.
        let progress = &mut *self.state.0.lock();
        if progress.rest.is_empty() && progress.body.as_ref().is_some_and(HttpBody::is_end_stream) {
            self.connection.end(progress);
        }
    }
}

impl Connection {
    /// The last of an answer is handed to the transport: what it holds is free when that has sent it.
    fn end(&self, progress: &mut Progress) {
        progress.body = None;
        if let Some(held) = progress.held.take() {
            self.0.sending.lock().push(held);
        }
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
