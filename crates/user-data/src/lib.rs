//! A person's rights: exports and erases all that is held of one user.
//!
//! [`UserData::export`] reads what the stores have. An erasure has two parts. [`UserData::begin`] makes the dictionary
//! of users forget the user id and records the erasure, in one transaction: what still has the key is nameless then.
//! [`UserData::until_forgotten`] waits until no process finds the user in its cache either. [`UserData::erase`] removes
//! the rest, in the background.
//!
//! *Invariant:* each step of an erasure can be repeated, in any state of the steps after it. After a crash the erasure
//! starts from its beginning.
//!
//! *Invariant:* a message is deleted from its stream only when every consumer has settled it. For any other message
//! nats-server would publish an advisory, which becomes a dead letter.
//!
//! *Invariant:* the texts are removed from the archive after the messages: until then, a message that is delivered
//! again is compared with the post that the archive has.

mod erase;
mod error;
mod export;

use std::{sync::Arc, time::Duration};

use herald_mesh::{Mesh, Topology, streams};
use herald_model::{PostId, UserId, time::Timestamp};
use herald_store::{Erasure, ErasureId, Forgotten, Stores};

pub use error::{Error, Result};
pub use export::Record;

/// Delay between two questions whether every process has forgotten a user.
const FORGOTTEN_POLL: Duration = Duration::from_millis(200);

/// The streams and the stores that have data of users. Clones share them.
#[derive(Clone)]
pub struct UserData {
    /// The streams.
    pub mesh: Mesh,
    /// The streams and consumers.
    pub topology: Arc<Topology>,
    /// The stores.
    pub stores: Stores,
}

impl UserData {
    /// Makes the dictionary forget a user id, and records the erasure; an erasure of this id that is not complete is
    /// returned as it is. `None` for an unknown user. Durable on return. `actor` is who asked; the record names users who
    /// erase themselves `the user`, because it must not have the user id.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn begin(&self, id: &UserId, actor: &str) -> Result<Option<Erasure>> {
        let is_self = actor.strip_prefix("user:") == Some(id.as_str());
        let actor = if is_self { "the user" } else { actor };
        Ok(self.stores.erasures.begin(id, actor, Timestamp::now()).await?)
    }

    /// Waits until every process has forgotten the user of an erasure, and records when that was. What is accepted for
    /// the user id after the return is that of a new user. Can be called by several processes, and repeated.
    ///
    /// # Errors
    /// Those of the store and of the broker, and [`Error::NoErasure`].
    pub async fn until_forgotten(&self, id: ErasureId) -> Result<Forgotten> {
        loop {
            let erasure = self.stores.erasures.get(id).await?;
            if let Some(forgotten) = erasure.ok_or(Error::NoErasure)?.forgotten {
                return Ok(forgotten);
            }
            if self.stores.erasures.is_forgotten(id).await? {
                // Only now: whoever had the key in a cache has accepted no later post.
                let forgotten = Forgotten {
                    last_post: PostId(self.mesh.last_sequence(streams::POSTS).await?),
                    at: Timestamp::now(),
                };
                // Another process may have recorded it: the next reading has what counts.
                self.stores.erasures.record_forgotten(id, &forgotten).await?;
            } else {
                tokio::time::sleep(FORGOTTEN_POLL).await;
            }
        }
    }

    /// The erasures that are not complete, oldest first.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn running(&self) -> Result<Vec<Erasure>> {
        Ok(self.stores.erasures.running().await?)
    }

    /// Reads an erasure; `None` if there is none with this id.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn erasure(&self, id: ErasureId) -> Result<Option<Erasure>> {
        Ok(self.stores.erasures.get(id).await?)
    }
}
