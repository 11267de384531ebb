//! Erasures: the removal of all that is held of a person.

use async_trait::async_trait;
use herald_model::{PostId, UserId, UserKey, time::Timestamp};
use uuid::Uuid;

use crate::{Error, ErrorKind, Result};

/// Id of an erasure, from 1, ascending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErasureId(pub u64);

/// What an erasure has removed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ErasedCounts {
    /// Posts of the user.
    pub posts: u64,
    /// Follows of the user, and of others who followed the user.
    pub follows: u64,
    /// Push addresses.
    pub devices: u64,
    /// Entries of the user's timeline.
    pub timeline_entries: u64,
    /// Messages of streams.
    pub messages: u64,
    /// Dead letters that were discarded.
    pub dead_letters: u64,
}

/// The moment after which no process finds the erased user by the id any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten {
    /// When, by the caller's clock.
    pub at: Timestamp,
    /// The newest post at that time. A later post of the id is one of a new user, unless it names the erased user's
    /// key.
    pub last_post: PostId,
}

impl Forgotten {
    /// Decodes what a row has of it: both values, or none.
    pub(crate) fn decode(at: Option<i64>, last_post: Option<u64>) -> Result<Option<Self>> {
        match (at, last_post) {
            (Some(at), Some(last_post)) => Ok(Some(Self {
                at: Timestamp(at),
                last_post: PostId(last_post),
            })),
            (None, None) => Ok(None),
            _ => Err(corrupt()),
        }
    }
}

/// The erasure of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// The id.
    pub id: ErasureId,
    /// The key that the user had. No other user gets it.
    pub user: UserKey,
    /// The id that the user had, or a placeholder if the user was erased before; `None` once the erasure is complete.
    pub user_id: Option<UserId>,
    /// Who asked for it.
    pub actor: String,
    /// When it was asked for, by the caller's clock.
    pub requested_at: Timestamp,
    /// When every process had forgotten the user id; `None` until then.
    pub forgotten: Option<Forgotten>,
    /// When it was complete, by the caller's clock; `None` while it runs.
    pub completed_at: Option<Timestamp>,
    /// What it has removed so far.
    pub counts: ErasedCounts,
}

/// The erasures of users.
///
/// *Invariant:* once [`begin`](Self::begin) has returned, [`Users::find`](crate::Users::find) gives no key for the
/// user's id, and [`Users::ids`](crate::Users::ids) gives a placeholder for the key: in this process at once, in all
/// processes once [`is_forgotten`](Self::is_forgotten) has returned `true`. A call that has read the key before goes on
/// with it.
#[async_trait]
pub trait Erasures: Send + Sync {
    /// Makes the dictionary of users forget an id, and records the erasure of its user, in one transaction. Durable on
    /// return. The key gets a random placeholder as its id ([`UserId::is_placeholder`]), so each key still has an id.
    ///
    /// If the id has no key, returns the newest erasure of this id that is not complete; `None` if there is none
    /// either. So a repeated call returns the erasure that is running.
    async fn begin(&self, id: &UserId, actor: &str, now: Timestamp) -> Result<Option<Erasure>>;

    /// Records another erasure of an erased user, because a post with the user's key was archived that no earlier one
    /// has found: NATS can store a post long after its publish has failed. Durable on return.
    ///
    /// `None` if the user is not erased, or if an erasure of the user that runs will find the post: every process has yet
    /// to forget the user, or had when POSTS already had the post.
    async fn begin_again(
        &self,
        user: UserKey,
        post: PostId,
        actor: &str,
        now: Timestamp,
    ) -> Result<Option<Erasure>>;

    /// Reads an erasure; `None` if there is none with this id.
    async fn get(&self, id: ErasureId) -> Result<Option<Erasure>>;

    /// Lists the erasures that are not complete, oldest first.
    async fn running(&self) -> Result<Vec<Erasure>>;

    /// Whether no process has the user of an erasure in a cache that it uses. Once it has returned `true`, no cache
    /// gets the user again; a later call can return `false` for a moment, because of a process that begins to use its
    /// cache. With several processes it takes a second or two until it returns `true`; as long as the lease of a cache
    /// if a process has ended without saying so, or can't reach the store.
    async fn is_forgotten(&self, id: ErasureId) -> Result<bool>;

    /// Records that [`is_forgotten`](Self::is_forgotten) has returned `true`. Durable on return. Repeating it changes
    /// nothing: the first record stays.
    ///
    /// [`Invalid`](crate::ErrorKind::Invalid) if there is no erasure with this id.
    async fn record_forgotten(&self, id: ErasureId, forgotten: &Forgotten) -> Result<()>;

    /// Adds to the counts of an erasure. Durable on return. A call that has failed may have added them.
    ///
    /// [`Invalid`](crate::ErrorKind::Invalid) if there is no erasure with this id.
    async fn add(&self, id: ErasureId, counts: &ErasedCounts) -> Result<()>;

    /// Marks an erasure as complete, and removes the id of the user from it. Durable on return. Repeating it changes
    /// nothing: the first time stays.
    ///
    /// [`Invalid`](crate::ErrorKind::Invalid) if there is no erasure with this id.
    async fn complete(&self, id: ErasureId, now: Timestamp) -> Result<()>;

    /// Lists up to `limit` erasures less than `before`, newest first.
    async fn list(&self, before: Option<ErasureId>, limit: usize) -> Result<Vec<Erasure>>;
}

impl ErasedCounts {
    /// The sum of two counts.
    #[must_use]
    pub fn plus(&self, more: &Self) -> Self {
        Self {
            posts: self.posts.saturating_add(more.posts),
            follows: self.follows.saturating_add(more.follows),
            devices: self.devices.saturating_add(more.devices),
            timeline_entries: self.timeline_entries.saturating_add(more.timeline_entries),
            messages: self.messages.saturating_add(more.messages),
            dead_letters: self.dead_letters.saturating_add(more.dead_letters),
        }
    }
}

impl Erasure {
    /// Whether this erasure runs and will find a post that is in POSTS: it reads POSTS after every process has forgotten
    /// the user.
    pub(crate) fn will_find(&self, post: PostId) -> bool {
        let finds = self.forgotten.is_none_or(|forgotten| post <= forgotten.last_post);
        self.completed_at.is_none() && finds
    }
}

/// A new id for the key of an erased user.
pub(crate) fn placeholder() -> Result<UserId> {
    UserId::from_stored(format!("{}{}", UserId::PLACEHOLDER_PREFIX, Uuid::new_v4()))
        .map_err(|error| Error::with_source(ErrorKind::Corrupt, "can't make the id of an erased user", error))
}

/// The error of a row that can't be decoded.
pub(crate) fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "can't decode a stored erasure")
}

/// The error of a call about an erasure that does not exist.
pub(crate) fn missing(id: ErasureId) -> Error {
    Error::new(ErrorKind::Invalid, format!("there is no erasure {}", id.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_what_is_recorded_of_a_forgotten_user_is_refused() {
        let forgotten = Forgotten {
            at: Timestamp(8),
            last_post: PostId(70),
        };
        assert_eq!(Forgotten::decode(Some(8), Some(70)).unwrap(), Some(forgotten));
        assert_eq!(Forgotten::decode(None, None).unwrap(), None);
        for (at, last_post) in [(Some(8), None), (None, Some(70))] {
            let refused = Forgotten::decode(at, last_post).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Corrupt);
        }
    }
}
