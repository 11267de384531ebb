//! Retention and health of a store.

use async_trait::async_trait;
use herald_model::time::Timestamp;

use crate::{ClockCheck, Result};

/// Removes data whose retention has ended.
#[async_trait]
pub trait Retention: Send + Sync {
    /// Removes what is past its retention at `now`: follow history, request ids, posts on timelines, ledger rows, chunk
    /// counts, dead letters and operations, texts of deleted posts, and posts, if they have a retention. Safe to call
    /// from several processes, but one at a time does all the work: the holder of the lease [`RETENTION_LEASE`]. Called
    /// once a minute.
    async fn trim(&self, now: Timestamp) -> Result<()>;

    /// Records the time, and says whether [`trim`](Self::trim) may be called with it. Durable on return. Called before
    /// each `trim`, by the holder of the lease.
    async fn observe_clock(&self, now: Timestamp) -> Result<ClockCheck>;
}

/// Name of the lease of the process that calls [`Retention::trim`].
pub const RETENTION_LEASE: &str = "retention";

/// Whether a store can be used now, for readiness.
#[async_trait]
pub trait Health: Send + Sync {
    /// Checks that records can be read and written.
    async fn records(&self) -> Result<()>;

    /// Checks that timelines can be read and written.
    async fn timelines(&self) -> Result<()>;
}
