//! Chunks that are being worked on.
//!
//! A chunk can be there twice: fan-out that had to begin anew publishes it again, and the broker knows it for the same only
//! within its dedupe window; or it comes again because the broker heard nothing of it for the ack wait. Both copies at once
//! would find that nobody has the push yet, and send it twice. So the second one waits for the first, and then finds in the
//! ledger what it did.

use std::{collections::HashMap, sync::Arc};

use herald_model::{ChunkId, PostId};
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

type Key = (PostId, ChunkId);

/// The chunks in hand; as many as consumers may have in flight.
#[derive(Debug, Default)]
pub(crate) struct ChunkLocks {
    locks: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

/// One chunk in hand, until it is dropped.
#[derive(Debug)]
pub(crate) struct ChunkGuard<'a> {
    chunk_lock: &'a ChunkLocks,
    key: Key,
    guard: Option<OwnedMutexGuard<()>>,
}

impl ChunkLocks {
    /// Waits until no other copy of the chunk is in hand.
    pub(crate) async fn take(&self, post: PostId, chunk: ChunkId) -> ChunkGuard<'_> {
        let key = (post, chunk);
        let mut held = ChunkGuard {
            chunk_lock: self,
            key,
            guard: None,
        };
        let lock = self.locks.lock().entry(key).or_default().clone();
        held.guard = Some(lock.lock_owned().await);
        held
    }
}

impl Drop for ChunkGuard<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut locks = self.chunk_lock.locks.lock();
        // Those who wait have it too; the last one takes it out.
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
    fn a_second_copy_waits_for_the_first_and_nothing_is_left_over() {
        let chunk_lock = ChunkLocks::default();
        let take = |post| chunk_lock.take(PostId(post), ChunkId(7));
        let first = take(1).now_or_never().unwrap();
        let mut second = Box::pin(take(1));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(take(2).now_or_never().is_some(), "another chunk doesn't wait");
        drop(first);
        let second = second.now_or_never().unwrap();
        assert!(take(1).now_or_never().is_none());
        drop(second);
        assert!(chunk_lock.locks.lock().is_empty());
    }
}
