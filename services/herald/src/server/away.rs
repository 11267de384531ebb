//! Waiting, at the start, for servers that are away.

use std::time::Duration;

use anyhow::{Error, Result};
use herald_runtime::telemetry::error_chain;
use tokio::time::Instant;

/// Pause before the next attempt.
const PAUSE: Duration = Duration::from_secs(1);

/// Tries until it succeeds, the error is not that a server is away, or the limit has passed. The first failure is logged.
pub(super) async fn wait<T>(limit: Duration, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    let mut is_waiting = false;
    loop {
        let error = match attempt().await {
            Ok(done) => {
                if is_waiting {
                    tracing::info!("the server that was away is there; the start goes on");
                }
                return Ok(done);
            }
            Err(error) if is_away(&error) && Instant::now() + PAUSE < end => error,
            failed => return failed,
        };
        if !is_waiting {
            is_waiting = true;
            tracing::warn!(
                error = error_chain(error.as_ref()),
                limit_s = limit.as_secs(),
                "a server that the process needs is away; the start waits for it"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether a server did not answer, as opposed to a refusal that stays.
fn is_away(error: &Error) -> bool {
    error.chain().any(|cause| {
        let store = cause.downcast_ref::<herald_store::Error>();
        let mesh = cause.downcast_ref::<herald_mesh::Error>();
        store.is_some_and(herald_store::Error::is_away)
            || mesh.is_some_and(|error| error.kind() == herald_mesh::ErrorKind::Unavailable)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> Error {
        Error::new(herald_store::Error::new(
            herald_store::ErrorKind::Unavailable,
            "refused",
        ))
        .context("can't open the store")
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_comes_back_is_waited_for() {
        let mut attempts = 0;
        let done = wait(Duration::from_mins(1), async || {
            attempts += 1;
            if attempts < 5 { Err(away()) } else { Ok(attempts) }
        });
        assert_eq!(done.await.unwrap(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_ends_at_its_limit() {
        let started = Instant::now();
        let failed = wait(Duration::from_secs(10), async || Err::<(), _>(away())).await;
        assert!(failed.is_err());
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_the_wait_at_once() {
        for (limit, error) in [(60, anyhow::anyhow!("wrong password")), (0, away())] {
            let mut attempts = 0;
            let mut error = Some(error);
            let failed = wait(Duration::from_secs(limit), async || {
                attempts += 1;
                Err::<(), _>(error.take().expect("one attempt"))
            });
            assert!(failed.await.is_err());
            assert_eq!(attempts, 1);
        }
    }
}
