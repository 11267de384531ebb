//! Leases: work that only one process may do at a time.

use std::time::Duration;

use async_trait::async_trait;

use crate::Result;

/// A held lease: its name and the fencing token of this holding.
///
/// A process that was paused can act after its lease has ended. So writes that the lease guards name its fence, and the
/// store refuses them with [`Fenced`](crate::ErrorKind::Fenced) once the lease has ended or has a newer holder (Martin
/// Kleppmann, "How to do distributed locking", 2016).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fence {
    /// Name of the lease.
    pub name: String,
    /// Number of this holding of the lease; each holding has a greater one than all before.
    pub token: u64,
}

/// Leases with fencing tokens, by the clock of the store.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Takes a lease for `duration`. `None` while another holder has it. A holder that takes its own lease again (after
    /// a restart under the same name) gets a new token.
    async fn acquire(&self, name: &str, holder: &str, duration: Duration) -> Result<Option<Fence>>;

    /// Extends a lease: it lasts for `duration` from now. [`Fenced`](crate::ErrorKind::Fenced) if it has a newer holder
    /// or was released. A lease that has ended without a newer holder is extended.
    async fn renew(&self, fence: &Fence, duration: Duration) -> Result<()>;

    /// Ends a lease. Does nothing if it has a newer holder.
    async fn release(&self, fence: &Fence) -> Result<()>;
}
