//! The responses of a streaming call whose caller may stop reading.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use herald_rpc::status;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Responses buffered for a slow caller. The work waits while the buffer is full.
const BUFFERED_MAX: usize = 256;
/// Longest wait for a caller that does not read. Then its work ends, so that it does not block the next caller.
const READ_WAIT_MAX: Duration = Duration::from_secs(10);
/// Delay after which such a caller may try again.
const SLOW_RETRY_AFTER: Duration = Duration::from_millis(100);
/// Longest wait once the service shuts down.
const SHUTDOWN_WAIT_MAX: Duration = Duration::from_millis(500);

/// The sender of the responses.
pub(super) struct Responses<T> {
    sender: Option<mpsc::Sender<Result<T, Status>>>,
    /// The end of a call that was cut; after what is buffered, so that a cut call never looks complete.
    cut: Arc<OnceLock<Status>>,
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
        let cut = Arc::new(OnceLock::new());
        let responses = Self {
            sender: Some(sender),
            cut: Arc::clone(&cut),
            wait_max,
            shutdown,
        };
        // The sender is dropped after the reason is set.
        let end = stream::once(async move { cut.get().cloned() });
        let end = end.filter_map(|cut| std::future::ready(cut.map(Err)));
        (responses, Box::pin(ReceiverStream::new(receiver).chain(end)))
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
                () = tokio::time::sleep(self.wait_max) => {
                    let message = format!("the caller read nothing for {:?}: the rest was not sent", self.wait_max);
                    status::exhausted("SLOW_READER", message, SLOW_RETRY_AFTER)
                }
                () = at_shutdown => status::unavailable("SHUTTING_DOWN", "the service is shutting down"),
            }
        };
        let is_sent = tokio::select! {
            biased;
            sent = sender.send(response) => sent.is_ok(),
            cut = waited => {
                tracing::info!("the caller of a streaming call does not read; the call ends");
                let _ = self.cut.set(cut);
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
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;

    #[tokio::test]
    async fn a_call_that_is_not_cut_ends_without_an_error() {
        let (mut responses, stream) = Responses::new(CancellationToken::new());
        assert!(responses.send(Ok(1)).await);
        drop(responses);
        let received: Vec<_> = stream.map(Result::unwrap).collect().await;
        assert_eq!(received, [1]);
    }

    #[tokio::test]
    async fn a_caller_that_does_not_read_ends_the_call() {
        let (mut responses, stream) =
            Responses::with_wait_max(Duration::from_millis(20), CancellationToken::new());
        for number in 0..BUFFERED_MAX {
            assert!(responses.send(Ok(number)).await);
        }
        assert!(!responses.send(Ok(0)).await);
        assert!(!responses.send(Ok(0)).await);
        let mut received: Vec<_> = stream.collect().await;
        let last = received.pop().unwrap().unwrap_err();
        let reason = last.get_details_error_info().unwrap().reason;
        assert_eq!(
            (last.code(), reason.as_str()),
            (Code::ResourceExhausted, "SLOW_READER")
        );
        assert!(received.len() == BUFFERED_MAX && received.iter().all(Result::is_ok));

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
