//! A person's rights: exports and erases all that is held of one user.
//!
//! [`UserData::export`] reads what the stores have. An erasure has two parts. [`UserData::begin`] makes the dictionary
//! of users forget the user id and records the erasure, in one transaction: from then on nothing finds the user, and
//! what still has the key is nameless. [`UserData::erase`] removes the rest, in the background.
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

use std::sync::Arc;

use herald_mesh::{Mesh, Topology};
use herald_model::{UserId, time::Timestamp};
use herald_store::{Erasure, ErasureId, Stores};

pub use error::{Error, Result};
pub use export::Record;

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
