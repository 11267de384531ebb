//! Self-test of the checker: with a falsified journal on the same mesh it must report violations. Runs in every
//! episode; violations that need a broken mesh are negative controls.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{
    deletions,
    watches::{self, Facts},
};
use crate::workload::{Deletion, WatchRecord};

/// Violations that the checker does not detect.
pub(super) fn undetected(watched: &[WatchRecord], facts: Facts<'_>) -> Vec<String> {
    let checks = [
        ("an answered deletion that was not done", lost_deletion(facts)),
        ("a deletion that was not requested", unrequested_deletion(facts)),
        ("a push long after the deletion of its post", late_push(facts)),
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
