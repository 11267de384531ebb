//! The responses of a streaming call whose caller may stop reading.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Responses buffered for a slow caller. The work waits while the buffer is full.
const BUFFERED_MAX: usize = 256;
/// Longest wait for a caller that does not read. Then its work ends, so that it does not block the next caller.
const READ_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest wait once the service shuts down.
const SHUTDOWN_WAIT_MAX: Duration = Duration::from_millis(500);

/// The sender of the responses.
pub(super) struct Responses<T> {
    sender: Option<mpsc::Sender<Result<T, Status>>>,
    wait_max: Duration,
    shutdown: CancellationToken,
}

impl<T: Send + 'static> Responses<T> {
    /// Creates the responses of a call, and the stream for its caller.
    pub(super) fn new(
        shutdown: CancellationToken,
    ) -> (Self, impl Stream<Item = Result<T, Status>> + Send + 'static) {
        Self::with_wait_max(READ_WAIT_MAX, shutdown)
    }

    fn with_wait_max(
        wait_max: Duration,
        shutdown: CancellationToken,
    ) -> (Self, impl Stream<Item = Result<T, Status>> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(BUFFERED_MAX);
        let responses = Self {
            sender: Some(sender),
            wait_max,
            shutdown,
        };
        (responses, ReceiverStream::new(receiver).fuse())
    }

    /// Sends a response. Returns whether the caller still reads: `false` after it has disconnected, or has read nothing
    /// for the longest wait. A shutdown waits for no slow caller.
    pub(super) async fn send(&mut self, response: Result<T, Status>) -> bool {
        let Some(sender) = &self.sender else {
            return false;
        };
        let waited = async {
            let at_shutdown = async {
                self.shutdown.cancelled().await;
                tokio::time::sleep(SHUTDOWN_WAIT_MAX).await;
            };
            tokio::select! {
                () = tokio::time::sleep(self.wait_max) => {}
                () = at_shutdown => {}
            }
        };
        let is_sent = tokio::select! {
            biased;
            sent = sender.send(response) => sent.is_ok(),
            () = waited => {
                tracing::info!("the caller of a streaming call does not read; the call ends");
                false
            }
        };
        if !is_sent {
            self.sender = None;
        }
        is_sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_caller_that_does_not_read_ends_the_call() {
        let (mut responses, stream) =
            Responses::with_wait_max(Duration::from_millis(20), CancellationToken::new());
        for number in 0..BUFFERED_MAX {
            assert!(responses.send(Ok(number)).await);
        }
        assert!(!responses.send(Ok(0)).await);
        assert!(!responses.send(Ok(0)).await);
        assert_eq!(stream.count().await, BUFFERED_MAX);

        let (mut responses, stream) =
            Responses::with_wait_max(Duration::from_millis(20), CancellationToken::new());
        drop(stream);
        assert!(!responses.send(Ok(0)).await);
    }

    #[tokio::test]
    async fn a_caller_that_does_not_read_does_not_delay_the_shutdown() {
        let shutdown = CancellationToken::new();
        let (mut responses, _stream) = Responses::with_wait_max(Duration::from_mins(10), shutdown.clone());
        for number in 0..BUFFERED_MAX {
            assert!(responses.send(Ok(number)).await);
        }
        let blocked = tokio::spawn(async move { responses.send(Ok(0)).await });
        shutdown.cancel();
        let sent = tokio::time::timeout(Duration::from_secs(20), blocked).await;
        assert!(!sent.expect("the call ends").unwrap());
    }
}
