//! Self-test of the checker: with a falsified journal on the same mesh it must report violations. Runs in every
//! episode; violations that need a broken mesh are negative controls.

use std::collections::HashMap;

use jiff::{Timestamp, ToSpan as _};

use super::{
    deletions,
    expect::Expected,
    invariants,
    watches::{self, Facts},
};
use crate::workload::{
    AcceptedPost, Change, Deletion, READERS, Relation, WatchRecord, initial_relation, reader as reader_name,
};

/// Violations that the checker does not detect.
pub(super) fn undetected(watched: &[WatchRecord], facts: Facts<'_>) -> Vec<String> {
    let checks = [
        ("an answered deletion that was not done", lost_deletion(facts)),
        ("a deletion that was not requested", unrequested_deletion(facts)),
        ("a push long after the deletion of its post", late_push(facts)),
        (
            "a follow between submit and acceptance that the post missed",
            missed_follow(facts),
        ),
        (
            "an unfollow between submit and acceptance that the post ignored",
            ignored_unfollow(facts),
        ),
        (
            "a follow after the first chunk that the post has",
            late_follow(facts),
        ),
        (
            "a post that a watcher did not receive",
            missing_post(watched, facts),
        ),
        (
            "a post that the wrong watcher received",
            foreign_post(watched, facts),
        ),
    ];
    checks
        .into_iter()
        // `None`: the episode has no data to falsify.
        .filter(|(_, detected)| *detected == Some(false))
        .map(|(what, _)| format!("the checker does not detect {what}"))
        .collect()
}

fn lost_deletion(facts: Facts<'_>) -> Option<bool> {
    let post = facts
        .posts
        .iter()
        .find(|post| !facts.deletions.contains_key(&post.id))?;
    let deletion = Deletion {
        answered: Some(Timestamp::now()),
    };
    let mut falsified = facts.deletions.clone();
    falsified.insert(post.id, deletion);
    Some(!deletions::posts(facts.posts, facts.observed, &falsified).is_empty())
}

fn unrequested_deletion(facts: Facts<'_>) -> Option<bool> {
    facts.observed.posts.values().find(|seen| seen.deleted)?;
    Some(!deletions::posts(facts.posts, facts.observed, &HashMap::new()).is_empty())
}

fn late_push(facts: Facts<'_>) -> Option<bool> {
    let (_, post) = facts.observed.received.keys().next()?;
    let deletion = Deletion {
        answered: Some(Timestamp::UNIX_EPOCH),
    };
    let falsified = HashMap::from([(*post, deletion)]);
    Some(!deletions::pushes(facts.observed, &falsified, &[]).is_empty())
}

/// A post that its caller started before a Follow was answered, and the broker stored after it: the follower must be a
/// recipient. A post that pins its followers at submit misses them.
fn missed_follow(facts: Facts<'_>) -> Option<bool> {
    let (post, reader) = some_reader(facts, false)?;
    let accepted_at = facts.observed.moments.get(&post.id)?.accepted_at;
    Some(detects_change(
        facts,
        post,
        reader,
        Relation::Follows,
        accepted_at - 1.millisecond(),
    ))
}

/// The same for an Unfollow.
fn ignored_unfollow(facts: Facts<'_>) -> Option<bool> {
    let (post, reader) = some_reader(facts, true)?;
    let accepted_at = facts.observed.moments.get(&post.id)?.accepted_at;
    Some(detects_change(
        facts,
        post,
        reader,
        Relation::None,
        accepted_at - 1.millisecond(),
    ))
}

/// A recipient who was none before, and whose only Follow came after the first chunk: the followers were pinned twice.
fn late_follow(facts: Facts<'_>) -> Option<bool> {
    let (post, reader) = facts.posts.iter().find_map(|post| {
        let seen = facts.observed.posts.get(&post.id)?;
        let mut recipients = seen.timeline_states.keys();
        let reader = recipients.find(|r| initial_relation(**r, post.author) == Relation::None)?;
        Some((post, *reader))
    })?;
    let pinned_by = facts.observed.moments.get(&post.id)?.pinned_by?;
    Some(detects_change(
        facts,
        post,
        reader,
        Relation::Follows,
        pinned_by + 1.millisecond(),
    ))
}

/// A post, and a reader who is a recipient of it or not.
fn some_reader(facts: Facts<'_>, recipient: bool) -> Option<(&AcceptedPost, usize)> {
    facts.posts.iter().find_map(|post| {
        let seen = facts.observed.posts.get(&post.id)?;
        let reader = (0..READERS).find(|r| seen.timeline_states.contains_key(r) == recipient)?;
        Some((post, reader))
    })
}

/// Whether the checker reports the post when this change is the reader's only one. By the logical clock it is concurrent
/// with the call that submitted the post.
fn detects_change(
    facts: Facts<'_>,
    post: &AcceptedPost,
    reader: usize,
    relation: Relation,
    at: Timestamp,
) -> bool {
    let change = Change {
        relation,
        started: post.started,
        started_at: at,
        ended: post.ended,
        answered_at: at,
    };
    let changes = HashMap::from([((reader, post.author), vec![change])]);
    let expected = Expected::new(facts.posts, &changes, facts.deletions);
    let found = invariants::fanout(std::slice::from_ref(post), facts.observed, &expected);
    found
        .iter()
        .any(|violation| violation.contains(&format!("{} is planned", reader_name(reader))))
}

/// Removes the newest post from a watcher: no exception of the contract covers it.
fn missing_post(watched: &[WatchRecord], facts: Facts<'_>) -> Option<bool> {
    let newest = |watched: &WatchRecord| Some(facts.observed.timelines[watched.reader].first()?.0);
    let mut one = watched
        .iter()
        .find(|watched| newest(watched).is_some_and(|id| watched.entries.contains_key(&id)))?
        .clone();
    let id = newest(&one)?;
    one.entries.remove(&id);
    for shown in &mut one.resumes {
        shown.retain(|other| *other != id);
    }
    Some(!watches::check(&[one], facts).is_empty())
}

/// Adds the posts of the watcher with the most authors to the one with the fewest.
fn foreign_post(watched: &[WatchRecord], facts: Facts<'_>) -> Option<bool> {
    let most = watched.iter().max_by_key(|watched| watched.entries.len())?;
    let least = watched.iter().min_by_key(|watched| watched.entries.len())?;
    most.entries.keys().find(|id| !least.entries.contains_key(id))?;
    let mut one = least.clone();
    one.entries.extend(most.entries.clone());
    Some(!watches::check(&[one], facts).is_empty())
}
