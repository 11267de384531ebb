//! The auditor: checks that no delivery is missing or extra, and reports each that is.
//!
//! An audit reads the accepted posts in windows, oldest first ([`posts`]). It compares:
//! - for each post, acceptance with the plan, and the plan with the outcomes ([`plan`]);
//! - for each window, the outcomes with the timelines ([`timelines`]);
//! - at the end, JetStream advisories with the dead letters ([`advisories`]).
//!
//! A discrepancy is only a suspect at first, because the work may be in flight. The auditor reads the messages in
//! flight ([`in_flight`]), rechecks the suspects ([`confirm`]), and reports the remaining ones as [`Finding`]s. A
//! discrepancy that a dead letter explains ([`dead_letter_index`]) is no finding. On request the auditor publishes the
//! messages that repair a finding, and rebuilds timelines ([`repair`]).
//!
//! *Invariant:* the auditor changes no store, except that a repair rebuilds timelines: they are a view of the ledger. A
//! repair publishes only messages with idempotent effects.
//!
//! *Invariant:* the messages in flight are read after the suspects, in the order of processing, and the stores are read
//! again after that. A message is acknowledged only after its effect is durable, so work without a message in flight is
//! either in the stores or lost.

mod advisories;
mod confirm;
mod dead_letter_index;
mod error;
mod finding;
mod in_flight;
mod isolated;
mod pairs;
mod plan;
mod posts;
mod repair;
mod summary;
mod throttle;
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

/// The mesh and the stores that an audit reads.
#[derive(Clone)]
pub struct Auditor {
    /// Read for messages in flight; repairs are published to it.
    pub mesh: Mesh,
    /// The streams and consumers to read.
    pub topology: Arc<Topology>,
    /// User ids.
    pub users: Arc<dyn Users>,
    /// The archive of posts.
    pub posts: Arc<dyn Posts>,
    /// The timelines.
    pub timelines: Arc<dyn Timelines>,
    /// Plans and outcomes.
    pub ledger: Arc<dyn Ledger>,
    /// Counts by post and hour.
    pub totals: Arc<dyn Totals>,
    /// The dead letters.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// Bounds of the audit.
    pub limits: Limits,
}

/// The bounds of an audit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Maximum number of deliveries in one window: 8 bytes of memory each. Each window reads all timelines once.
    pub pairs_max: usize,
    /// Whether to compare outcomes with the timelines.
    pub timelines: bool,
    /// Maximum number of entries in a timeline; older entries are trimmed and not missing.
    pub timeline_entries_max: usize,
    /// Retention of timeline entries.
    pub timeline_age_max: std::time::Duration,
    /// Retention of posts; `None` without end. Older posts of POSTS that the archive lacks were removed.
    pub post_age_max: Option<std::time::Duration>,
    /// Share of time that the audit works, above 0 and at most 1; it sleeps in between to leave resources to live
    /// traffic. 1 never sleeps.
    pub work_share: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pairs_max: 16 << 20,
            timelines: true,
            timeline_entries_max: 800,
            timeline_age_max: std::time::Duration::from_hours(30 * 24),
            post_age_max: None,
            work_share: 1.0,
        }
    }
}

/// Which posts to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All posts in POSTS or in the ledger.
    All,
    /// Posts accepted at or after this time.
    Since(Timestamp),
    /// One post.
    Post(PostId),
}

/// An event of a running audit.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A finding.
    Finding(Finding),
    /// The progress of the audit.
    Progress(Progress),
}

impl Auditor {
    /// Checks that the posts in scope exist.
    ///
    /// # Errors
    /// [`Error::UnknownPost`] for one post that does not exist; other errors if the mesh or a store can't be read.
    pub async fn check_scope(&self, scope: Scope) -> Result<()> {
        Box::pin(posts::Pass::start(self, scope)).await.map(|_| ())
    }

    /// Audits the posts in scope and sends findings and progress to `events`. The audit waits while the channel is
    /// full. With `repair`, it publishes messages that repair the findings, and rebuilds timelines.
    ///
    /// # Errors
    /// [`Error::UnknownPost`] for one post that does not exist; [`Error::Abandoned`] if the receiver of `events` is
    /// dropped; other errors if the mesh or a store can't be read.
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
