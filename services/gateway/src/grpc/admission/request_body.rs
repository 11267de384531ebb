//! The body of a request, as it comes in.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use herald_rpc::status;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body};

use super::{CallBytes, framing::Framing};

/// Time for the next byte of a request after the shutdown began.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(1);

/// Ends with an error when its caller sends nothing for too long, or too much.
pub(super) struct RequestBody {
    body: Body,
    kind: RequestKind,
    waits: Waits,
    /// Of the part that is awaited.
    timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
    shutdown: CancellationToken,
    shutdown_began: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    is_stopping: bool,
    /// What the bytes in memory count for.
    bytes: Arc<CallBytes>,
}

/// How many requests there are.
pub(super) enum RequestKind {
    /// One, which is in memory until the call ends.
    One,
    /// A stream, of which an incomplete request is in memory.
    Many(Framing),
}

/// How long a caller may send nothing.
#[derive(Clone, Copy)]
pub(super) struct Waits {
    /// Within a request.
    pub(super) within: Duration,
    /// Between the requests of a stream.
    pub(super) between: Duration,
}

impl RequestBody {
    pub(super) fn new(
        body: Body,
        kind: RequestKind,
        waits: Waits,
        shutdown: CancellationToken,
        bytes: Arc<CallBytes>,
    ) -> Self {
        Self {
            body,
            kind,
            waits,
            timer: None,
            is_waiting: false,
            shutdown,
            shutdown_began: None,
            is_stopping: false,
            bytes,
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.is_waiting = false;
            if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
                let has_room = match &mut this.kind {
                    RequestKind::One => this.bytes.take(data.len()),
                    RequestKind::Many(framing) => this.bytes.set(framing.push(data)),
                };
                if !has_room {
                    return Poll::Ready(Some(Err(super::unread())));
                }
            }
            return Poll::Ready(frame);
        }
        // The service wants more, and the caller has not sent it.
        if !this.is_stopping {
            let shutdown = &this.shutdown;
            let began = this
                .shutdown_began
                .get_or_insert_with(|| Box::pin(shutdown.clone().cancelled_owned()));
            if began.as_mut().poll(cx).is_ready() {
                this.is_stopping = true;
                this.is_waiting = false;
            }
        }
        let wait = match &this.kind {
            _ if this.is_stopping => SHUTDOWN_WAIT,
            RequestKind::Many(framing) if !framing.is_within_message() => this.waits.between,
            _ => this.waits.within,
        };
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(wait)));
        if !this.is_waiting {
            this.is_waiting = true;
            timer.as_mut().reset(Instant::now() + wait);
        }
        timer.as_mut().poll(cx).map(|()| {
            Some(Err(if this.is_stopping {
                status::unavailable("SHUTTING_DOWN", "the server is shutting down; retry later")
            } else {
                status::deadline_exceeded(format!(
                    "the caller sent nothing of its request for {} ms (gateway.request_wait_ms, between the \
                     requests of a stream gateway.request_idle_ms)",
                    wait.as_millis()
                ))
            }))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
