//! Watches: each watcher received each post of the final timeline, and no other post.
//!
//! Exceptions of WatchTimeline's contract, left to ListTimeline: a post that became visible after the watcher resumed
//! with a token that records 64 newer posts, or after 200 newer posts were on the timeline.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use super::{deletions, expect::Expected, observe::Observed};
use crate::{
    log::FaultWindow,
    workload::{AcceptedPost, Deletion, WatchRecord, Watchers, reader},
};

/// Posts that a resume token records.
const TOKEN_POSTS: usize = 64;
/// Newest posts of a timeline that a watch must deliver.
const WINDOW: usize = 200;
/// Time limit for a watch to deliver missed posts: some heartbeats and one resume.
const LIMIT: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(200);

/// Inputs of the watch checks.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) posts: &'a [AcceptedPost],
    pub(super) observed: &'a Observed,
    pub(super) expected: &'a Expected,
    pub(super) deletions: &'a HashMap<u64, Deletion>,
}

/// Waits until the watchers have received every post or [`LIMIT`] is over; returns what they received.
pub(super) async fn wait(watchers: &Watchers, facts: Facts<'_>) -> Vec<WatchRecord> {
    let started = Instant::now();
    loop {
        let watched = watchers.watched();
        let complete = watched.iter().all(|watched| missing(watched, facts).is_empty());
        if complete || started.elapsed() > LIMIT {
            return watched;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Returns unexpected and missing posts of the watchers.
pub(super) fn check(watched: &[WatchRecord], facts: Facts<'_>) -> Vec<String> {
    let by_id: HashMap<u64, &AcceptedPost> = facts.posts.iter().map(|post| (post.id, post)).collect();
    watched
        .iter()
        .flat_map(|watched| {
            let mut violations = unexpected(watched, &by_id, facts);
            violations.extend(missing(watched, facts));
            violations
        })
        .collect()
}

/// Streams that were silent for several heartbeats without a fault.
pub(super) fn check_silences(watched: &[WatchRecord], faults: &[FaultWindow]) -> Vec<String> {
    let silences = watched.iter().flat_map(|one| {
        one.silences
            .iter()
            .map(|(since, until)| (one.reader, *since, *until))
    });
    silences
        .filter(|(_, since, until)| !faults.iter().any(|fault| fault.overlaps(*since, *until)))
        .map(|(r, since, until)| {
            format!(
                "the watch of {} was silent from {since} to {until} without a fault",
                reader(r)
            )
        })
        .collect()
}

fn unexpected(watched: &WatchRecord, by_id: &HashMap<u64, &AcceptedPost>, facts: Facts<'_>) -> Vec<String> {
    let name = reader(watched.reader);
    let mut violations = Vec::new();
    for (id, shown) in &watched.entries {
        let Some(post) = by_id.get(id) else {
            violations.push(format!(
                "watcher {name} received post {id}, which was never accepted"
            ));
            continue;
        };
        let planned = facts
            .observed
            .posts
            .get(id)
            .is_some_and(|seen| seen.timeline_states.contains_key(&watched.reader));
        if !planned && !facts.expected.may_be_backfilled(post, watched.reader) {
            violations.push(format!(
                "watcher {name} received post {id} without being a recipient"
            ));
        }
        if shown.text != post.text {
            violations.push(format!(
                "watcher {name} received post {id} with the wrong text {:?}",
                shown.text
            ));
        }
        let deleted = facts.deletions.get(id).and_then(|deletion| deletion.answered);
        if let Some(deleted) = deleted.filter(|at| shown.at > *at + deletions::DELAY_MAX_WITH_FAULT) {
            violations.push(format!(
                "watcher {name} received post {id} at {}, although its deletion was answered at {deleted}",
                shown.at
            ));
        }
    }
    violations
}

fn missing(watched: &WatchRecord, facts: Facts<'_>) -> Vec<String> {
    let on_timeline = facts.observed.timelines[watched.reader].iter().map(|(id, _)| *id);
    if on_timeline.clone().all(|id| watched.entries.contains_key(&id)) {
        return Vec::new();
    }
    // Deleted posts count towards the limits, although the watch may have delivered none of them.
    let hidden: BTreeSet<u64> = facts
        .observed
        .posts
        .iter()
        .filter(|(id, seen)| {
            facts.deletions.contains_key(id) && seen.timeline_states.contains_key(&watched.reader)
        })
        .map(|(id, _)| *id)
        .collect();
    let all: BTreeSet<u64> = on_timeline.clone().chain(hidden.iter().copied()).collect();
    let newer_count = |known: &BTreeSet<u64>, id: u64| known.range(id + 1..).count();
    let recorded: Vec<BTreeSet<u64>> = watched
        .resumes
        .iter()
        .filter_map(|shown| {
            let newest = *shown.last()?;
            let hidden = hidden.range(..newest).copied();
            Some(shown.iter().copied().chain(hidden).collect())
        })
        .collect();
    on_timeline
        .filter(|id| !watched.entries.contains_key(id))
        .filter(|id| newer_count(&all, *id) < WINDOW)
        .filter(|id| {
            recorded
                .iter()
                .all(|recorded| newer_count(recorded, *id) < TOKEN_POSTS)
        })
        .map(|id| format!("watcher {} never received post {id}", reader(watched.reader)))
        .collect()
}
