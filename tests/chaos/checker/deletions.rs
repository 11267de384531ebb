//! Deletions: a deleted post is on no timeline and is not pushed any more. A deletion without an answer is done or not,
//! but consistently.

use std::{collections::HashMap, time::Duration};

use super::observe::Observed;
use crate::{
    log::FaultWindow,
    workload::{AcceptedPost, Deletion, reader},
};

/// Maximum delay until a deletion stops pushes. The push service polls deletions every half second, after it has
/// recorded its progress, and pushes in flight still arrive. Generous, because a commit may be slow on a shared disk.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// The same with a fault in between: longer than any stop of a process or delay of the network.
pub(super) const DELAY_MAX_WITH_FAULT: Duration = Duration::from_secs(15);

/// Each post exists or is deleted as journalled, for all readers alike.
pub(super) fn posts(
    posts: &[AcceptedPost],
    observed: &Observed,
    deletions: &HashMap<u64, Deletion>,
) -> Vec<String> {
    let mut violations = Vec::new();
    for post in posts {
        let Some(seen) = observed.posts.get(&post.id) else {
            continue;
        };
        match deletions.get(&post.id) {
            None if seen.deleted => violations.push(format!("post {} is deleted without a request", post.id)),
            Some(deletion) if deletion.answered.is_some() && !seen.deleted => {
                violations.push(format!(
                    "post {} is not deleted, although its deletion was answered",
                    post.id
                ));
            }
            None | Some(_) => {}
        }
    }
    for (r, entries) in observed.timelines.iter().enumerate() {
        for (id, _) in entries {
            let answered = deletions
                .get(id)
                .is_some_and(|deletion| deletion.answered.is_some());
            if answered || observed.posts.get(id).is_some_and(|seen| seen.deleted) {
                violations.push(format!(
                    "the timeline of {} has post {id}, which is deleted",
                    reader(r)
                ));
            }
        }
    }
    violations
}

/// POSTS and analytics count each deletion once.
pub(super) fn counts(observed: &Observed) -> Vec<String> {
    let deleted = observed.posts.values().filter(|seen| seen.deleted).count() as u64;
    let mut violations = Vec::new();
    if observed.deletion_messages != deleted {
        violations.push(format!(
            "POSTS has {} deletions, but {deleted} posts are deleted",
            observed.deletion_messages
        ));
    }
    if observed.totals.deleted_post_count != deleted {
        violations.push(format!(
            "analytics counts {} deleted posts, but {deleted} are deleted",
            observed.totals.deleted_post_count
        ));
    }
    violations
}

/// No device received a push of a deleted post after the answer to its deletion, except pushes in flight.
pub(super) fn pushes(
    observed: &Observed,
    deletions: &HashMap<u64, Deletion>,
    faults: &[FaultWindow],
) -> Vec<String> {
    let mut violations = Vec::new();
    for ((device, post), receipts) in &observed.received {
        let Some(answered) = deletions.get(post).and_then(|deletion| deletion.answered) else {
            continue;
        };
        for time in &receipts.times {
            let during_fault = faults.iter().any(|fault| fault.overlaps(answered, *time));
            let limit = if during_fault {
                DELAY_MAX_WITH_FAULT
            } else {
                DELAY_MAX
            };
            if *time > answered + limit {
                violations.push(format!(
                    "{device} received post {post} at {time}, although its deletion was answered at {answered}"
                ));
            }
        }
    }
    violations
}
