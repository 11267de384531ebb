//! How long a valid credential stays valid.

use std::{sync::Arc, time::Duration};

use herald_model::time::Timestamp;
use tokio_util::sync::CancellationToken;

/// Maximum time between two looks at the clock, which may have been set meanwhile.
const CLOCK_INTERVAL: Duration = Duration::from_secs(5);

/// The end of a credential. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Lifetime {
    expires_at: Option<Timestamp>,
    /// Cancelled when the key is revoked, or the issuer has withdrawn the key that signed the token.
    revoked: Arc<CancellationToken>,
}

impl Lifetime {
    pub(crate) fn new(expires_at: Option<Timestamp>, revoked: Arc<CancellationToken>) -> Self {
        Self { expires_at, revoked }
    }

    /// Waits until the credential is revoked or expires.
    pub async fn ended(self) {
        tokio::select! {
            () = self.revoked.cancelled() => {}
            () = expired(self.expires_at) => {}
        }
    }
}

async fn expired(expires_at: Option<Timestamp>) {
    let Some(end) = expires_at else {
        return std::future::pending().await;
    };
    loop {
        let left = end.since(Timestamp::now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_INTERVAL)).await;
    }
}
