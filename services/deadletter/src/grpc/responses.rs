//! The responses of a streaming call whose caller may stop reading.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Responses buffered for a slow caller. The work waits while the buffer is full.
const BUFFERED_MAX: usize = 256;
/// Longest wait for a caller that does not read. Then its work ends, so that it does not block the next caller.
const READ_WAIT_MAX: Duration = Duration::from_secs(30);

/// The sender of the responses.
pub(super) struct Responses<T> {
    sender: Option<mpsc::Sender<Result<T, Status>>>,
    wait_max: Duration,
}

impl<T: Send + 'static> Responses<T> {
    /// Creates the responses of a call, and the stream for its caller.
    pub(super) fn new() -> (Self, impl Stream<Item = Result<T, Status>> + Send + 'static) {
        Self::with_wait_max(READ_WAIT_MAX)
    }

    fn with_wait_max(wait_max: Duration) -> (Self, impl Stream<Item = Result<T, Status>> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(BUFFERED_MAX);
        let responses = Self {
            sender: Some(sender),
            wait_max,
        };
        (responses, ReceiverStream::new(receiver).fuse())
    }

    /// Sends a response. Returns whether the caller still reads: `false` after it has disconnected, or has read nothing
    /// for the longest wait.
    pub(super) async fn send(&mut self, response: Result<T, Status>) -> bool {
        let Some(sender) = &self.sender else {
            return false;
        };
        let sent = sender.send_timeout(response, self.wait_max).await;
        if let Err(error) = &sent {
            if matches!(error, mpsc::error::SendTimeoutError::Timeout(_)) {
                tracing::info!(
                    wait_seconds = self.wait_max.as_secs(),
                    "the caller of a streaming call does not read; the call ends"
                );
            }
            self.sender = None;
        }
        sent.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_caller_that_does_not_read_ends_the_call() {
        let (mut responses, stream) = Responses::with_wait_max(Duration::from_millis(20));
        for number in 0..BUFFERED_MAX {
            assert!(responses.send(Ok(number)).await);
        }
        assert!(!responses.send(Ok(0)).await);
        assert!(!responses.send(Ok(0)).await);
        assert_eq!(stream.count().await, BUFFERED_MAX);

        let (mut responses, stream) = Responses::with_wait_max(Duration::from_millis(20));
        drop(stream);
        assert!(!responses.send(Ok(0)).await);
    }
}
