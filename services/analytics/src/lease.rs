//! The lease of this process: it shows other processes that the announced files have a writer.

use std::{sync::Arc, time::Duration};

use herald_store::{Error, ErrorKind, Fence, Leases, Result};

/// Duration of the lease.
const LEASE: Duration = Duration::from_secs(30);

/// A held lease.
pub(crate) struct Held {
    leases: Arc<dyn Leases>,
    fence: Fence,
}

impl Held {
    /// Takes a lease of a new name.
    pub(crate) async fn acquire(leases: Arc<dyn Leases>) -> Result<Self> {
        let instance = uuid::Uuid::new_v4().to_string();
        let name = format!("analytics/{instance}");
        let fence = leases.acquire(&name, &instance, LEASE).await?;
        let fence =
            fence.ok_or_else(|| Error::new(ErrorKind::Fenced, format!("the lease {name} is taken")))?;
        Ok(Self { leases, fence })
    }

    /// The fence of the lease.
    pub(crate) fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Renews the lease until it is lost, and returns why.
    pub(crate) async fn keep(&self) -> Error {
        loop {
            tokio::time::sleep(LEASE / 3).await;
            match self.leases.renew(&self.fence, LEASE).await {
                Err(error) if error.kind() == ErrorKind::Fenced => return error,
                Err(error) => {
                    tracing::warn!(%error, "can't renew the lease of this process, will be retried")
                }
                Ok(()) => {}
            }
        }
    }

    /// Ends the lease.
    pub(crate) async fn release(&self) {
        if let Err(error) = self.leases.release(&self.fence).await {
            tracing::debug!(%error, "lease not released, it ends by itself");
        }
    }
}
