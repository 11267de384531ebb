//! What the load was promised: the obligations that the checker holds the mesh to.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::Tie;

/// A moment, counted in calls: of two moments the later one has the greater number.
pub(crate) type Moment = u64;

/// A post that was accepted.
#[derive(Debug, Clone)]
pub(crate) struct Posted {
    pub(crate) id: u64,
    pub(crate) author: usize,
    pub(crate) text: String,
    pub(crate) request_id: String,
    /// Before its first try.
    pub(crate) started: Moment,
    /// After its answer.
    pub(crate) ended: Moment,
}

/// A change of a tie that was answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) tie: Tie,
    /// Before its first try.
    pub(crate) started: Moment,
    /// After its answer.
    pub(crate) ended: Moment,
}

/// A deletion that was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Deletion {
    /// When its first answer came; without one it may have been done or not.
    pub(crate) answered: Option<Timestamp>,
}

/// Of one run.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    clock: AtomicU64,
    posts: Mutex<Vec<Posted>>,
    changes: Mutex<HashMap<(usize, usize), Vec<Change>>>,
    /// By post.
    deletions: Mutex<HashMap<u64, Deletion>>,
    /// Messages that nobody can read, put into streams on purpose: stream and sequence.
    poison: Mutex<HashSet<(String, u64)>>,
    /// How often the push provider began to fail.
    provider_failures: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Journal {
    /// The moment now.
    pub(crate) fn now(&self) -> Moment {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    pub(super) fn posted(&self, post: Posted) {
        self.posts.lock().push(post);
    }

    pub(super) fn changed(&self, reader: usize, author: usize, change: Change) {
        self.changes
            .lock()
            .entry((reader, author))
            .or_default()
            .push(change);
    }

    /// A post is about to be deleted.
    pub(super) fn deletes(&self, post: u64) {
        self.deletions.lock().entry(post).or_default();
    }

    /// The deletion of a post was answered just now.
    pub(super) fn deleted(&self, post: u64) {
        let mut deletions = self.deletions.lock();
        let deletion = deletions.entry(post).or_default();
        deletion.answered.get_or_insert_with(Timestamp::now);
    }

    /// A message that nobody can read was put into a stream.
    pub(crate) fn poisoned(&self, stream: &str, sequence: u64) {
        self.poison.lock().insert((stream.into(), sequence));
    }

    /// The push provider begins to fail: pushes may be given up.
    pub(crate) fn provider_fails(&self) {
        self.provider_failures.fetch_add(1, Ordering::SeqCst);
    }

    /// Something was seen that must not be, before the checker even looked.
    pub(crate) fn wrong(&self, what: String) {
        let mut wrong = self.wrong.lock();
        if wrong.len() < 100 {
            wrong.push(what);
        }
    }

    pub(crate) fn accepted_count(&self) -> usize {
        self.posts.lock().len()
    }

    pub(crate) fn posts(&self) -> Vec<Posted> {
        self.posts.lock().clone()
    }

    /// Those that were accepted after the first so many.
    pub(super) fn posts_from(&self, known: usize) -> Vec<Posted> {
        self.posts.lock()[known..].to_vec()
    }

    pub(crate) fn deletions(&self) -> HashMap<u64, Deletion> {
        self.deletions.lock().clone()
    }

    /// Posts whose deletion was answered.
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

    /// Messages in POSTS that are no posts.
    pub(crate) fn foreign_count(&self) -> u64 {
        let poison = self.poison.lock();
        poison.iter().filter(|(stream, _)| stream == "POSTS").count() as u64
    }

    pub(crate) fn all_wrong(&self) -> Vec<String> {
        self.wrong.lock().clone()
    }
}
