//! The auditor: proves that nothing is missing, or names what is.
//!
//! An audit goes over the accepted posts in windows, oldest first ([`posts`]). Of each post it compares what was accepted
//! with what was planned, and what was planned with what is settled ([`plan`]); of each window, what is settled with what the
//! timelines have ([`timelines`]); at the end, what JetStream says was given up with the dead letters ([`advisories`]).
//! What looks wrong is a suspect only: it may be on its way. So the auditor reads what the streams still carry
//! ([`carried`]), looks again ([`confirm`]), and what is still wrong then is a [`Finding`]. On request it sends again what
//! is owed ([`repair`]). What a dead letter explains ([`explained`]) is no finding.
//!
//! *Invariant:* the auditor changes no store. A repair publishes messages whose effects can be repeated.
//!
//! *Invariant:* what the streams carry is read after the suspects, stage by stage in the direction in which work flows, and the
//! stores are read again after that. A message is acknowledged after its effect, so what no message carries any more is in the
//! stores, or it is lost.

mod advisories;
mod carried;
mod confirm;
mod error;
mod explained;
mod finding;
mod pace;
mod pairs;
mod plan;
mod posts;
mod repair;
mod summary;
mod timelines;
mod totals;
mod window;

use std::sync::Arc;

use herald_mesh::{Mesh, Topology};
use herald_model::{PostId, time::Timestamp};
use herald_store::{DeadLetters, Ledger, Posts, Timelines, Totals, Users};
use tokio::sync::mpsc;

pub use error::{Error, Result};
pub use finding::{Finding, FindingKind, Repaired};
pub use summary::{ChannelSums, Progress, Summary};

/// What an auditor looks at.
#[derive(Clone)]
pub struct Auditor {
    /// What is on its way, and where repairs go.
    pub mesh: Mesh,
    /// The streams and consumers to look at.
    pub topology: Arc<Topology>,
    /// User ids.
    pub users: Arc<dyn Users>,
    /// Posts and request ids.
    pub posts: Arc<dyn Posts>,
    /// What users read.
    pub timelines: Arc<dyn Timelines>,
    /// What became of each delivery.
    pub ledger: Arc<dyn Ledger>,
    /// Counts by post and hour.
    pub totals: Arc<dyn Totals>,
    /// What was given up.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// How it looks.
    pub limits: Limits,
}

/// The bounds of an audit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Deliveries compared with the timelines at a time: 8 bytes each, and one pass over all timelines for as many.
    pub pairs_max: usize,
    /// Whether to compare with the timelines at all.
    pub timelines: bool,
    /// What a timeline keeps: older entries are gone on purpose.
    pub timeline_entries_max: usize,
    /// How long a timeline keeps an entry.
    pub timeline_age_max: std::time::Duration,
    /// How much of the time it works, above 0; it rests in between, so that posts needn't wait for it. 1 for an audit that
    /// somebody waits for.
    pub work_share: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pairs_max: 16 << 20,
            timelines: true,
            timeline_entries_max: 800,
            timeline_age_max: std::time::Duration::from_hours(30 * 24),
            work_share: 1.0,
        }
    }
}

/// Which posts to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All that are remembered.
    All,
    /// Those accepted since.
    Since(Timestamp),
    /// One.
    Post(PostId),
}

/// What an audit tells while it runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Something is wrong.
    Finding(Finding),
    /// How far it has come.
    Progress(Progress),
}

impl Auditor {
    /// Whether there is anything in scope that can be checked.
    ///
    /// # Errors
    /// [`Error::UnknownPost`] for a scope of one post that never was.
    pub async fn knows(&self, scope: Scope) -> Result<()> {
        Box::pin(posts::Pass::start(self, scope)).await.map(|_| ())
    }

    /// Checks the posts in scope. Findings and progress go to `events`; the audit waits for whoever reads them, and ends
    /// with [`Error::Abandoned`] when nobody does any more.
    ///
    /// # Errors
    /// [`Error::UnknownPost`] for a scope of one post that never was; others when the mesh or a store can't be read.
    pub async fn run(&self, scope: Scope, repair: bool, events: &mpsc::Sender<Event>) -> Result<Summary> {
        let mut run = confirm::Run::new(self, repair, events);
        let pass = Box::pin(posts::Pass::start(self, scope)).await?;
        Box::pin(pass.run(&mut run)).await?;
        if !matches!(scope, Scope::Post(_)) {
            Box::pin(advisories::check(self, scope, &mut run)).await?;
        }
        Ok(run.finish())
    }
}
