//! Claims of chunks, in memory: a claim ends with its process, and a directory has one process at a time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use herald_model::{Channel, ChunkId, PostId};
use parking_lot::Mutex;

use crate::{Error, ErrorKind, Result};

/// Time after its end for which a claim can still be extended.
const ENDED_KEEP: Duration = Duration::from_mins(1);
/// Number of claims at which those that ended long ago are first forgotten.
const SWEEP_MIN: usize = 1_024;

type Key = (PostId, Channel, ChunkId);

/// The claims that last, and some that have ended.
#[derive(Default)]
pub(super) struct Claims(Mutex<State>);

#[derive(Default)]
struct State {
    claims: HashMap<Key, Claim>,
    /// Number of claims at which the next sweep happens.
    sweep_at: usize,
}

#[derive(Clone, Copy)]
struct Claim {
    revision: u64,
    ends_at: Instant,
}

impl Claims {
    /// Checks that no claim of the chunk lasts.
    ///
    /// # Errors
    /// [`ErrorKind::Claimed`] if one does.
    pub(super) fn check_free(&self, post: PostId, channel: Channel, chunk: ChunkId) -> Result<()> {
        let state = self.0.lock();
        match state.claims.get(&(post, channel, chunk)) {
            Some(claim) if Instant::now() < claim.ends_at => Err(Error::new(
                ErrorKind::Claimed,
                format!("another worker has claimed chunk {chunk} of post {post}"),
            )),
            _ => Ok(()),
        }
    }

    /// Adds a claim, which replaces one that has ended.
    pub(super) fn insert(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        revision: u64,
        lease: Duration,
    ) {
        let now = Instant::now();
        let mut state = self.0.lock();
        if state.claims.len() >= state.sweep_at {
            state.claims.retain(|_, claim| now < claim.ends_at + ENDED_KEEP);
            state.sweep_at = (2 * state.claims.len()).max(SWEEP_MIN);
        }
        let claim = Claim {
            revision,
            ends_at: now + lease,
        };
        state.claims.insert((post, channel, chunk), claim);
    }

    /// Lets a claim last for `lease` from now.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if the chunk has no claim of this revision.
    pub(super) fn extend(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        revision: u64,
        lease: Duration,
    ) -> Result<()> {
        let mut state = self.0.lock();
        match state.claims.get_mut(&(post, channel, chunk)) {
            Some(claim) if claim.revision == revision => {
                claim.ends_at = Instant::now() + lease;
                Ok(())
            }
            _ => Err(Error::new(
                ErrorKind::Conflict,
                format!("chunk {chunk} of post {post} has no claim of revision {revision}"),
            )),
        }
    }

    /// Ends the claim of this revision, if there is one.
    pub(super) fn release(&self, post: PostId, channel: Channel, chunk: ChunkId, revision: u64) {
        let mut state = self.0.lock();
        let key = (post, channel, chunk);
        if state
            .claims
            .get(&key)
            .is_some_and(|claim| claim.revision == revision)
        {
            state.claims.remove(&key);
        }
    }

    /// Ends any claim of the chunk.
    pub(super) fn end(&self, post: PostId, channel: Channel, chunk: ChunkId) {
        self.0.lock().claims.remove(&(post, channel, chunk));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_that_ended_long_ago_take_no_memory() {
        let claims = Claims::default();
        let past = Instant::now().checked_sub(2 * ENDED_KEEP).unwrap();
        let lease = Duration::from_mins(1);
        claims.insert(PostId(1), Channel::Push, ChunkId(1), 1, lease);
        for post in 2..4 * SWEEP_MIN as u64 {
            claims.insert(PostId(post), Channel::Push, ChunkId(1), 1, lease);
            let key = (PostId(post), Channel::Push, ChunkId(1));
            claims.0.lock().claims.get_mut(&key).unwrap().ends_at = past;
        }
        assert!(claims.0.lock().claims.len() <= SWEEP_MIN);
        let claimed = claims.check_free(PostId(1), Channel::Push, ChunkId(1));
        assert_eq!(claimed.unwrap_err().kind(), ErrorKind::Claimed);
    }
}
