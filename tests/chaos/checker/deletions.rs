//! Deleted posts: on no timeline, and pushed to nobody any more; a deletion that nobody waited for is done or not, but
//! everywhere alike.

use std::{collections::HashMap, time::Duration};

use super::observe::Observed;
use crate::{
    log::Window,
    workload::{Deletion, Posted, reader},
};

/// The push service looks for deletions each half second, after it has recorded how far it is, and what is under way then
/// still comes; on a disk that others use, a record takes its time.
const NOTICED: Duration = Duration::from_secs(5);
/// The same when a process was stopped in between, or the network held something back: longer than any such fault.
pub(super) const NOTICED_LATE: Duration = Duration::from_secs(15);

/// Each post is there or deleted, as the journal says, for all who read.
pub(super) fn posts(
    posts: &[Posted],
    observed: &Observed,
    deletions: &HashMap<u64, Deletion>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for post in posts {
        let Some(seen) = observed.posts.get(&post.id) else {
            continue;
        };
        match deletions.get(&post.id) {
            None if seen.gone => wrong.push(format!("post {} is deleted, and nobody asked for it", post.id)),
            Some(deletion) if deletion.answered.is_some() && !seen.gone => {
                wrong.push(format!("post {} is not deleted, as was answered", post.id));
            }
            None | Some(_) => {}
        }
    }
    for (r, entries) in observed.timelines.iter().enumerate() {
        for (id, _) in entries {
            let answered = deletions
                .get(id)
                .is_some_and(|deletion| deletion.answered.is_some());
            if answered || observed.posts.get(id).is_some_and(|seen| seen.gone) {
                wrong.push(format!("{} has post {id}, which is deleted", reader(r)));
            }
        }
    }
    wrong
}

/// In POSTS and in analytics each deletion is one.
pub(super) fn counts(observed: &Observed) -> Vec<String> {
    let gone = observed.posts.values().filter(|seen| seen.gone).count() as u64;
    let mut wrong = Vec::new();
    if observed.deletion_messages != gone {
        wrong.push(format!(
            "POSTS has {} deletions, {gone} posts are deleted",
            observed.deletion_messages
        ));
    }
    if observed.totals.deleted_post_count != gone {
        wrong.push(format!(
            "analytics counts {} deleted posts, {gone} are",
            observed.totals.deleted_post_count
        ));
    }
    wrong
}

/// No push of a deleted post came after its deletion was answered, but for what was under way.
pub(super) fn pushes(
    observed: &Observed,
    deletions: &HashMap<u64, Deletion>,
    faults: &[Window],
) -> Vec<String> {
    let mut wrong = Vec::new();
    for ((device, post), receipts) in &observed.received {
        let Some(answered) = deletions.get(post).and_then(|deletion| deletion.answered) else {
            continue;
        };
        for time in &receipts.times {
            let hurt = faults.iter().any(|fault| fault.overlaps(answered, *time));
            let limit = if hurt { NOTICED_LATE } else { NOTICED };
            if *time > answered + limit {
                wrong.push(format!(
                    "{device} got post {post} at {time}, its deletion was answered at {answered}"
                ));
            }
        }
    }
    wrong
}
