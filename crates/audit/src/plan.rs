//! What the ledger has of a post, and whether it adds up.

use herald_failure::Classify as _;
use herald_model::{PostId, Recipients, UserKey};
use herald_store::{ChunkState, Outcome, PostPlan};

use crate::{Auditor, Error, Finding, FindingKind, Result, summary::ChannelSums};

/// Whether each slice up to the last is planned.
pub(crate) fn is_complete(plan: &PostPlan) -> bool {
    plan.slices
        .iter()
        .zip(0..)
        .all(|(slice, expected)| slice.index == expected)
        && plan.slices.last().is_some_and(|slice| slice.last)
}

/// What became of a chunk, in numbers.
pub(crate) fn sums(chunk: &ChunkState) -> ChannelSums {
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

/// Who of a chunk is in no final state.
pub(crate) fn pending(chunk: &ChunkState) -> Vec<UserKey> {
    match chunk.recorded.as_ref().map(|recorded| &recorded.outcome) {
        None => chunk.recipients.iter().collect(),
        Some(Outcome::Delivered { .. }) => Vec::new(),
        Some(mixed @ Outcome::Mixed { .. }) => {
            let settled = settled(mixed);
            let pending = chunk.recipients.iter();
            pending
                .filter(|user| settled.binary_search(user).is_err())
                .collect()
        }
    }
}

/// All who are in a final state, ascending; one who is in two stands twice.
fn settled(outcome: &Outcome) -> Vec<UserKey> {
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

/// Whether a chunk's settled recipients are all its own, and each in one state only.
pub(crate) fn is_consistent(chunk: &ChunkState) -> bool {
    match chunk.recorded.as_ref().map(|recorded| &recorded.outcome) {
        None => true,
        Some(Outcome::Delivered { count }) => *count == chunk.recipients.len(),
        Some(mixed @ Outcome::Mixed { .. }) => {
            let settled = settled(mixed);
            let mut own = chunk.recipients.iter();
            settled.is_sorted_by(|a, b| a < b) && settled.iter().all(|user| own.any(|one| one == *user))
        }
    }
}

/// What the ledger has of a post; or the finding that it can't be read.
pub(crate) async fn plan_of(
    auditor: &Auditor,
    post: PostId,
) -> Result<std::result::Result<Option<PostPlan>, Finding>> {
    let plan = auditor.ledger.audit(post).await;
    readable(post, "rows in the ledger", plan.map_err(Error::from))
}

/// Makes a finding of a post's rows that can't be read: they must not hide what is wrong with other posts.
pub(crate) fn readable<T>(
    post: PostId,
    what: &str,
    read: Result<T>,
) -> Result<std::result::Result<T, Finding>> {
    match read {
        Err(Error::Store(error)) if !error.is_transient() => {
            let detail = format!("the post's {what} can't be read: {error}");
            Ok(Err(Finding::of_post(FindingKind::Inconsistent, post, detail)))
        }
        read => read.map(Ok),
    }
}
