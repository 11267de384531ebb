//! Ctrl-C and SIGTERM, and a bounded time to drain.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a process that a second signal ends: as if the signal had killed it.
const EXIT_SIGINT: i32 = 130;
const EXIT_SIGTERM: i32 = 143;

/// What was awaited did not end in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not drained within {} s", limit.as_secs_f64())]
pub struct TimedOut {
    /// The time it had.
    pub limit: Duration,
}

/// A token that is cancelled by the first SIGINT or SIGTERM. A second one ends the process at once, with a message and
/// the exit code that the signal would have given. Must be called within a tokio runtime, once a process.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut first = true;
        loop {
            let (name, code) = tokio::select! {
                _ = interrupt.recv() => ("SIGINT", EXIT_SIGINT),
                _ = terminate.recv() => ("SIGTERM", EXIT_SIGTERM),
            };
            if first {
                first = false;
                tracing::info!(signal = name, "shutting down, again to exit at once");
                cancelled.cancel();
            } else {
                // Straight to stderr: whatever writes the log may be what hangs.
                eprintln!("herald: second {name}, exiting without draining");
                std::process::exit(code);
            }
        }
    });
    Ok(token)
}

/// Awaits a future for at most `limit`, then drops it.
pub async fn drain<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, TimedOut> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| TimedOut { limit })
}

/// Awaits a future; once `shutdown` is cancelled it has `limit` left to end, then it is dropped.
pub async fn drain_after<T>(
    shutdown: &CancellationToken,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, TimedOut> {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => Ok(done),
        () = shutdown.cancelled() => drain(limit, work).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn what_does_not_end_is_left() {
        assert_eq!(
            drain(LIMIT, std::future::pending::<()>()).await,
            Err(TimedOut { limit: LIMIT })
        );
        assert_eq!(drain(LIMIT, async { 7 }).await, Ok(7));
    }

    #[tokio::test]
    async fn the_limit_counts_from_the_shutdown() {
        let shutdown = CancellationToken::new();
        // Longer than the limit, but nobody asked it to end.
        let work = tokio::time::sleep(3 * LIMIT);
        assert_eq!(drain_after(&shutdown, LIMIT, work).await, Ok(()));
        shutdown.cancel();
        let left = drain_after(&shutdown, LIMIT, std::future::pending::<()>()).await;
        assert_eq!(left, Err(TimedOut { limit: LIMIT }));
    }
}
