//! Tries again while the NATS servers elect leaders, as they do after a loss.

use std::time::Duration;

use herald_mesh::ErrorKind;
use tokio::time::{Instant, sleep};

use crate::{Error, Result};

/// How long a recovery waits for the NATS servers.
const UNAVAILABLE_MAX: Duration = Duration::from_mins(1);
const DELAY: Duration = Duration::from_secs(1);

/// Tries again until a moment.
pub(crate) struct Retry {
    until: Instant,
}

impl Retry {
    pub(crate) fn start() -> Self {
        Self {
            until: Instant::now() + UNAVAILABLE_MAX,
        }
    }

    /// Makes attempts until one succeeds or fails for another reason than that no server does it now. An attempt can
    /// have had its effect although it failed, so it must be repeatable.
    ///
    /// # Errors
    /// [`Error::Unavailable`] after a minute; other errors at once.
    pub(crate) async fn run<T>(&self, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        loop {
            let error = match attempt().await {
                Err(Error::Mesh(error)) if error.kind() == ErrorKind::Unavailable => error,
                done => return done,
            };
            if Instant::now() + DELAY > self.until {
                return Err(Error::Unavailable(error));
            }
            tracing::warn!(%error, "the NATS servers don't do it now, trying again");
            sleep(DELAY).await;
        }
    }
}
