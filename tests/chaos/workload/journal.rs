//! Journal of the answers to the load: what the checker must find.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::Relation;

/// Logical time: a later event has a greater number.
pub(crate) type LogicalTime = u64;

/// An accepted post.
#[derive(Debug, Clone)]
pub(crate) struct AcceptedPost {
    pub(crate) id: u64,
    pub(crate) author: usize,
    pub(crate) text: String,
    /// Number of the lane in the API.
    pub(crate) lane: i32,
    pub(crate) request_id: String,
    /// Before the first attempt.
    pub(crate) started: LogicalTime,
    /// After the answer.
    pub(crate) ended: LogicalTime,
}

/// An answered change of a relation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) relation: Relation,
    /// Before the first attempt.
    pub(crate) started: LogicalTime,
    /// The same moment on the wall clock, which is also the clock of the broker's timestamps.
    pub(crate) started_at: Timestamp,
    /// After the answer.
    pub(crate) ended: LogicalTime,
    pub(crate) answered_at: Timestamp,
}

/// A requested deletion.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Deletion {
    /// Time of the first answer; `None`: the deletion may be done or not.
    pub(crate) answered: Option<Timestamp>,
}

/// The journal of one episode.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    clock: AtomicU64,
    posts: Mutex<Vec<AcceptedPost>>,
    changes: Mutex<HashMap<(usize, usize), Vec<Change>>>,
    /// By post id.
    deletions: Mutex<HashMap<u64, Deletion>>,
    /// Undecodable messages published by the suite: stream and sequence.
    poison: Mutex<HashSet<(String, u64)>>,
    /// Number of faults of the push provider.
    provider_failures: AtomicU64,
    violations: Mutex<Vec<String>>,
}

impl Journal {
    /// The next logical time.
    pub(crate) fn next_time(&self) -> LogicalTime {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    pub(super) fn record_post(&self, post: AcceptedPost) {
        self.posts.lock().push(post);
    }

    pub(super) fn record_change(&self, reader: usize, author: usize, change: Change) {
        self.changes
            .lock()
            .entry((reader, author))
            .or_default()
            .push(change);
    }

    /// Records that the deletion of a post is about to be requested.
    pub(super) fn start_deletion(&self, post: u64) {
        self.deletions.lock().entry(post).or_default();
    }

    /// Records the answer to a deletion.
    pub(super) fn record_deletion(&self, post: u64) {
        let mut deletions = self.deletions.lock();
        let deletion = deletions.entry(post).or_default();
        deletion.answered.get_or_insert_with(Timestamp::now);
    }

    /// Records an undecodable message.
    pub(crate) fn record_poison(&self, stream: &str, sequence: u64) {
        self.poison.lock().insert((stream.into(), sequence));
    }

    /// Records a fault of the push provider: pushes may become dead letters.
    pub(crate) fn record_provider_failure(&self) {
        self.provider_failures.fetch_add(1, Ordering::SeqCst);
    }

    /// Records a violation found during the load; keeps the first 100.
    pub(crate) fn record_violation(&self, what: String) {
        let mut violations = self.violations.lock();
        if violations.len() < 100 {
            violations.push(what);
        }
    }

    pub(crate) fn accepted_count(&self) -> usize {
        self.posts.lock().len()
    }

    pub(crate) fn posts(&self) -> Vec<AcceptedPost> {
        self.posts.lock().clone()
    }

    /// Accepted posts after the first `known` ones.
    pub(super) fn posts_from(&self, known: usize) -> Vec<AcceptedPost> {
        self.posts.lock()[known..].to_vec()
    }

    pub(crate) fn deletions(&self) -> HashMap<u64, Deletion> {
        self.deletions.lock().clone()
    }

    /// Posts with an answered deletion.
    pub(super) fn deleted_posts(&self) -> HashSet<u64> {
        let deletions = self.deletions.lock();
        let answered = deletions
            .iter()
            .filter(|(_, deletion)| deletion.answered.is_some());
        answered.map(|(post, _)| *post).collect()
    }

    pub(crate) fn changes(&self) -> HashMap<(usize, usize), Vec<Change>> {
        self.changes.lock().clone()
    }

    pub(crate) fn is_poison(&self, stream: &str, sequence: u64) -> bool {
        self.poison.lock().contains(&(stream.into(), sequence))
    }

    pub(crate) fn poison(&self) -> Vec<(String, u64)> {
        self.poison.lock().iter().cloned().collect()
    }

    pub(crate) fn provider_failures(&self) -> u64 {
        self.provider_failures.load(Ordering::SeqCst)
    }

    /// Undecodable messages in POSTS.
    pub(crate) fn poison_in_posts(&self) -> u64 {
        let poison = self.poison.lock();
        poison.iter().filter(|(stream, _)| stream == "POSTS").count() as u64
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().clone()
    }
}
