//! Shutdown on SIGINT and SIGTERM, and bounded draining.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Exit codes after a second signal: the same as those of a process that the signal kills (128 + signal number).
const EXIT_SIGINT: i32 = 130;
const EXIT_SIGTERM: i32 = 143;

/// Signals that follow the first one within this time belong to it: `timeout` of GNU coreutils, for one, signals its
/// child and then the process group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// The awaited work did not finish in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("work did not finish within {} s", limit.as_secs_f64())]
pub struct TimedOut {
    /// The time limit.
    pub limit: Duration,
}

/// Returns a token that the first SIGINT or SIGTERM cancels. A second signal, at least 500 ms later, exits the process
/// at once with a message and the exit code 130 (SIGINT) or 143 (SIGTERM). Must be called once per process, within a
/// tokio runtime.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut first = None;
        loop {
            let (name, code) = tokio::select! {
                _ = interrupt.recv() => ("SIGINT", EXIT_SIGINT),
                _ = terminate.recv() => ("SIGTERM", EXIT_SIGTERM),
            };
            let Some(first) = first else {
                first = Some(Instant::now());
                tracing::info!(
                    signal = name,
                    "shutting down; send the signal again to exit without draining"
                );
                cancelled.cancel();
                continue;
            };
            if first.elapsed() >= SAME_SIGNAL {
                // Written to stderr directly because the log writer may be blocked.
                eprintln!("herald: second {name}, exiting without draining");
                std::process::exit(code);
            }
        }
    });
    Ok(token)
}

/// Awaits a future for up to `limit`, then drops it.
pub async fn drain<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, TimedOut> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| TimedOut { limit })
}

/// Awaits a future. After `shutdown` it has `limit` to finish; then it is dropped.
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
    async fn drain_stops_waiting_after_the_limit() {
        assert_eq!(
            drain(LIMIT, std::future::pending::<()>()).await,
            Err(TimedOut { limit: LIMIT })
        );
        assert_eq!(drain(LIMIT, async { 7 }).await, Ok(7));
    }

    #[tokio::test]
    async fn the_limit_counts_from_the_shutdown() {
        let shutdown = CancellationToken::new();
        // Runs longer than the limit, but without a shutdown.
        let work = tokio::time::sleep(3 * LIMIT);
        assert_eq!(drain_after(&shutdown, LIMIT, work).await, Ok(()));
        shutdown.cancel();
        let drained = drain_after(&shutdown, LIMIT, std::future::pending::<()>()).await;
        assert_eq!(drained, Err(TimedOut { limit: LIMIT }));
    }
}
