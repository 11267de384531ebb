//! Locks of the chunks in flight.
//!
//! Two copies of a chunk can be in flight at the same time: a retry of fan-out publishes the chunk again after the
//! dedupe window of the broker, or the broker redelivers it after the ack wait. Concurrent copies would both read from
//! the ledger that no push was sent, and send every push twice. So the second copy waits for the first one, and then
//! resumes from the ledger.

use std::{collections::HashMap, sync::Arc};

use herald_model::{ChunkId, PostId};
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

type Key = (PostId, ChunkId);

/// The locks of the chunks in flight; bounded by the chunks that the consumers may have in flight.
#[derive(Debug, Default)]
pub(crate) struct ChunkLocks {
    locks: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

/// Holds the lock of one chunk until it is dropped.
#[derive(Debug)]
pub(crate) struct ChunkGuard<'a> {
    chunks: &'a ChunkLocks,
    key: Key,
    guard: Option<OwnedMutexGuard<()>>,
}

impl ChunkLocks {
    /// Locks a chunk; waits until no other copy of the chunk holds the lock.
    pub(crate) async fn lock(&self, post: PostId, chunk: ChunkId) -> ChunkGuard<'_> {
        let key = (post, chunk);
        let mut chunk_guard = ChunkGuard {
            chunks: self,
            key,
            guard: None,
        };
        let lock = self.locks.lock().entry(key).or_default().clone();
        chunk_guard.guard = Some(lock.lock_owned().await);
        chunk_guard
    }
}

impl Drop for ChunkGuard<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut locks = self.chunks.locks.lock();
        // Waiting copies hold a reference too; the last guard removes the lock.
        if locks
            .get(&self.key)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_second_copy_waits_for_the_first_and_unused_locks_are_removed() {
        let chunk_locks = ChunkLocks::default();
        let lock = |post| chunk_locks.lock(PostId(post), ChunkId(7));
        let first = lock(1).now_or_never().unwrap();
        let mut second = Box::pin(lock(1));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(lock(2).now_or_never().is_some(), "another chunk is not blocked");
        drop(first);
        let second = second.now_or_never().unwrap();
        assert!(lock(1).now_or_never().is_none());
        drop(second);
        assert!(chunk_locks.locks.lock().is_empty());
    }
}
