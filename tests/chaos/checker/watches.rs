//! Watches: each post that is on the timeline in the end was shown to whoever watched it, once, and nothing else was.
//!
//! What a watch need not bring is what WatchTimeline's contract leaves to ListTimeline: a post that became visible when the
//! watcher had returned with a token that tells 64 greater ones, or when 200 greater ones were on the timeline.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use super::{deletions, expect::Expected, observe::Observed};
use crate::{
    log::Window,
    workload::{Deletion, Posted, Watched, Watchers, reader},
};

/// Posts that a token tells.
const TOKEN_POSTS: usize = 64;
/// The newest posts that are compared with what was shown.
const WINDOW: usize = 200;
/// For a watch to find what it was not told of: some heartbeats, and a return.
const LIMIT: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(200);

/// What all of it is judged by.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) posts: &'a [Posted],
    pub(super) observed: &'a Observed,
    pub(super) expected: &'a Expected,
    pub(super) deletions: &'a HashMap<u64, Deletion>,
}

/// Waits until the watchers were shown everything; gives what they were shown then.
pub(super) async fn wait(watchers: &Watchers, facts: Facts<'_>) -> Vec<Watched> {
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

/// What is wrong with what they were shown.
pub(super) fn judge(watched: &[Watched], facts: Facts<'_>) -> Vec<String> {
    let by_id: HashMap<u64, &Posted> = facts.posts.iter().map(|post| (post.id, post)).collect();
    watched
        .iter()
        .flat_map(|watched| {
            let mut wrong = phantoms(watched, &by_id, facts);
            wrong.extend(missing(watched, facts));
            wrong
        })
        .collect()
}

/// Streams that fell silent for some heartbeats, though nothing happened.
pub(super) fn silences(watched: &[Watched], faults: &[Window]) -> Vec<String> {
    let silences = watched.iter().flat_map(|one| {
        one.silences
            .iter()
            .map(|(since, until)| (one.reader, *since, *until))
    });
    silences
        .filter(|(_, since, until)| !faults.iter().any(|fault| fault.overlaps(*since, *until)))
        .map(|(r, since, until)| format!("the watch of {} was silent from {since} to {until}", reader(r)))
        .collect()
}

fn phantoms(watched: &Watched, by_id: &HashMap<u64, &Posted>, facts: Facts<'_>) -> Vec<String> {
    let name = reader(watched.reader);
    let mut wrong = Vec::new();
    for (id, shown) in &watched.entries {
        let Some(post) = by_id.get(id) else {
            wrong.push(format!("post {id} was shown to {name}, and nobody wrote it"));
            continue;
        };
        let planned = facts
            .observed
            .posts
            .get(id)
            .is_some_and(|seen| seen.timeline_states.contains_key(&watched.reader));
        if !planned && !facts.expected.may_be_backfilled(post, watched.reader) {
            wrong.push(format!("post {id} was shown to {name} and was not for them"));
        }
        if shown.text != post.text {
            wrong.push(format!("post {id} was shown to {name} as {:?}", shown.text));
        }
        let deleted = facts.deletions.get(id).and_then(|deletion| deletion.answered);
        if let Some(deleted) = deleted.filter(|at| shown.at > *at + deletions::NOTICED_LATE) {
            wrong.push(format!(
                "post {id} was shown to {name} at {}, its deletion was answered at {deleted}",
                shown.at
            ));
        }
    }
    wrong
}

fn missing(watched: &Watched, facts: Facts<'_>) -> Vec<String> {
    let on_timeline = facts.observed.timelines[watched.reader].iter().map(|(id, _)| *id);
    if on_timeline.clone().all(|id| watched.entries.contains_key(&id)) {
        return Vec::new();
    }
    // Deleted posts count among those that a watch has looked at, though it may have shown none of them.
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
    let above = |known: &BTreeSet<u64>, id: u64| known.range(id + 1..).count();
    let told: Vec<BTreeSet<u64>> = watched
        .returns
        .iter()
        .filter_map(|shown| {
            let newest = *shown.last()?;
            let hidden = hidden.range(..newest).copied();
            Some(shown.iter().copied().chain(hidden).collect())
        })
        .collect();
    on_timeline
        .filter(|id| !watched.entries.contains_key(id))
        .filter(|id| above(&all, *id) < WINDOW)
        .filter(|id| told.iter().all(|told| above(told, *id) < TOKEN_POSTS))
        .map(|id| {
            format!(
                "post {id} was never shown to {}, who watches",
                reader(watched.reader)
            )
        })
        .collect()
}
