//! The lease of the process that runs operations.

use std::{convert::Infallible, sync::Arc, time::Duration};

use herald_store::{Fence, Leases};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Name of the lease.
const NAME: &str = "redrive";
/// Duration of the lease. Another process takes over after this time.
const DURATION: Duration = Duration::from_secs(5);
/// Delay between two attempts to take the lease.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The lease, held or not.
pub(crate) struct Lease {
    leases: Arc<dyn Leases>,
    holder: String,
    fence: Mutex<Fence>,
}

impl Lease {
    /// A lease that is not held.
    pub(crate) fn new(leases: Arc<dyn Leases>) -> Self {
        let fence = Fence {
            name: NAME.into(),
            token: 0,
        };
        Self {
            leases,
            holder: uuid::Uuid::new_v4().to_string(),
            fence: Mutex::new(fence),
        }
    }

    /// The fence of the last holding.
    pub(crate) fn fence(&self) -> Fence {
        self.fence.lock().clone()
    }

    /// Waits for the lease and takes it. `false` at the shutdown.
    pub(crate) async fn acquire(&self, stop: &CancellationToken) -> bool {
        while !stop.is_cancelled() {
            if self.try_acquire().await {
                return true;
            }
            stop.run_until_cancelled(tokio::time::sleep(RETRY_DELAY)).await;
        }
        false
    }

    async fn try_acquire(&self) -> bool {
        match self.leases.acquire(NAME, &self.holder, DURATION).await {
            Ok(Some(fence)) => {
                *self.fence.lock() = fence;
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(%error, "can't take the lease of redrives; retrying");
                false
            }
        }
    }

    /// Renews the lease for ever. Takes it again after it was lost.
    pub(crate) async fn keep(&self) -> Infallible {
        loop {
            tokio::time::sleep(DURATION / 3).await;
            let renewed = self.leases.renew(&self.fence(), DURATION).await;
            if let Err(error) = renewed {
                tracing::warn!(%error, "can't renew the lease of redrives; taking it again");
                self.try_acquire().await;
            }
        }
    }

    /// Ends the lease.
    pub(crate) async fn release(&self) {
        if let Err(error) = self.leases.release(&self.fence()).await {
            tracing::debug!(%error, "lease of redrives not released; it ends by itself");
        }
    }
}
