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

use super::CallBytes;

/// Time for the next byte of a request after the shutdown began.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(1);

/// Ends with an error when its caller sends nothing for too long, or too much.
pub(super) struct RequestBody {
    body: Body,
    wait: Duration,
    /// Of the part that is awaited.
    timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
    shutdown: CancellationToken,
    shutdown_began: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    is_stopping: bool,
    /// What the bytes count for, if all of them are kept until the call ends.
    bytes: Option<Arc<CallBytes>>,
}

impl RequestBody {
    pub(super) fn new(
        body: Body,
        wait: Duration,
        shutdown: CancellationToken,
        bytes: Option<Arc<CallBytes>>,
    ) -> Self {
        Self {
            body,
            wait,
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
            if let (Some(Ok(frame)), Some(bytes)) = (&frame, &this.bytes)
                && !bytes.take(frame.data_ref().map_or(0, Bytes::len))
            {
                return Poll::Ready(Some(Err(super::unread())));
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
        let wait = if this.is_stopping {
            SHUTDOWN_WAIT
        } else {
            this.wait
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
                    "the caller sent nothing of its request for {} ms (gateway.request_wait_ms, of streams \
                     gateway.request_idle_ms)",
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
