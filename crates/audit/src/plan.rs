//! Reads a post's plan from the ledger and checks its consistency.

use herald_failure::Classify as _;
use herald_model::{PostId, Recipients, UserKey};
use herald_store::{ChunkState, Outcome, PostPlan};

use crate::{Auditor, Error, Finding, FindingKind, Result, summary::ChannelSums};

/// Whether all slices up to the last one are planned.
pub(crate) fn is_complete(plan: &PostPlan) -> bool {
    plan.slices
        .iter()
        .zip(0..)
        .all(|(slice, expected)| slice.index == expected)
        && plan.slices.last().is_some_and(|slice| slice.last)
}

/// Whether all slices were planned at one follow version. Slices of an older Herald have none.
pub(crate) fn has_one_version(plan: &PostPlan) -> bool {
    let mut versions = plan.slices.iter().filter_map(|slice| slice.version);
    let first = versions.next();
    versions.all(|version| Some(version) == first)
}

/// The number of recipients of a chunk by state.
pub(crate) fn count_states(chunk: &ChunkState) -> ChannelSums {
    let targeted = u64::from(chunk.recipients.len());
    let outcome = chunk.recorded.as_ref().map(|recorded| &recorded.outcome);
    let counts = outcome.map(Outcome::counts).unwrap_or_default();
    let mut sums = ChannelSums {
        targeted,
        delivered: counts.delivered.into(),
        suppressed: counts.suppressed.into(),
        expired: counts.expired.into(),
        dead: counts.dead.into(),
        ..ChannelSums::default()
    };
    let settled = sums.delivered + sums.suppressed + sums.expired + sums.dead;
    sums.pending = targeted.saturating_sub(settled);
    sums
}

/// The pending recipients of a chunk.
pub(crate) fn pending_recipients(chunk: &ChunkState) -> Vec<UserKey> {
    match chunk.recorded.as_ref().map(|recorded| &recorded.outcome) {
        None => chunk.recipients.iter().collect(),
        Some(Outcome::Delivered { .. }) => Vec::new(),
        Some(mixed @ Outcome::Mixed { .. }) => {
            let settled = settled_recipients(mixed);
            let pending = chunk.recipients.iter();
            pending
                .filter(|user| settled.binary_search(user).is_err())
                .collect()
        }
    }
}

/// Whether the recipient of a chunk is delivered according to the ledger.
pub(crate) fn is_delivered(chunk: &ChunkState, user: UserKey) -> bool {
    match chunk.recorded.as_ref().map(|recorded| &recorded.outcome) {
        None => false,
        Some(Outcome::Delivered { .. }) => chunk.recipients.contains(user),
        Some(Outcome::Mixed { delivered, .. }) => delivered.contains(user),
    }
}

/// The recipients in a final state, ascending. A recipient in two states is listed twice.
fn settled_recipients(outcome: &Outcome) -> Vec<UserKey> {
    let Outcome::Mixed {
        delivered,
        suppressed,
        expired,
        dead,
        ..
    } = outcome
    else {
        return Vec::new();
    };
    let sets = [delivered, suppressed, expired, dead];
    let mut settled: Vec<UserKey> = sets.into_iter().flat_map(Recipients::iter).collect();
    settled.sort_unstable();
    settled
}

/// Whether all settled recipients of a chunk were planned, and each has one state only.
pub(crate) fn is_consistent(chunk: &ChunkState) -> bool {
    match chunk.recorded.as_ref().map(|recorded| &recorded.outcome) {
        None => true,
        Some(Outcome::Delivered { count }) => *count == chunk.recipients.len(),
        Some(mixed @ Outcome::Mixed { .. }) => {
            let settled = settled_recipients(mixed);
            let mut own = chunk.recipients.iter();
            settled.is_sorted_by(|a, b| a < b) && settled.iter().all(|user| own.any(|one| one == *user))
        }
    }
}

/// Reads the plan of a post. The inner error is a finding: the rows can't be read.
pub(crate) async fn read_plan(
    auditor: &Auditor,
    post: PostId,
) -> Result<std::result::Result<Option<PostPlan>, Finding>> {
    let plan = auditor.ledger.audit(post).await;
    unreadable_as_finding(post, "rows in the ledger", plan.map_err(Error::from))
}

/// Converts a permanent store error into a finding, so that corrupt rows of one post don't end the audit.
pub(crate) fn unreadable_as_finding<T>(
    post: PostId,
    rows: &str,
    read: Result<T>,
) -> Result<std::result::Result<T, Finding>> {
    match read {
        Err(Error::Store(error)) if !error.is_transient() => {
            let detail = format!("the post's {rows} can't be read: {error}");
            Ok(Err(Finding::of_post(FindingKind::Inconsistent, post, detail)))
        }
        read => read.map(Ok),
    }
}
