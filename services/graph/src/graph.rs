//! Operations shared by the calls of GraphService: lookup of users, changes of follows, backfills.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use herald_model::{UserId, UserKey};
use herald_rpc::status;
use herald_store::{FollowChange, FollowEffect, Follows, Users};
use tonic::Status;

use crate::{
    Config, Metrics,
    adapters::{BackfillError, Backfills},
    pace::Pace,
};

/// Implements GraphService on the store.
#[derive(Clone)]
pub(crate) struct Graph {
    pub(crate) config: Config,
    pub(crate) users: Arc<dyn Users>,
    pub(crate) follows: Arc<dyn Follows>,
    pub(crate) backfills: Backfills,
    pub(crate) metrics: Metrics,
    pub(crate) pace: Pace,
}

impl Graph {
    /// Applies validated changes; returns the effect of each.
    pub(crate) async fn apply(&self, changes: &[FollowChange]) -> Result<Vec<FollowEffect>, Status> {
        let effects = self
            .follows
            .apply(changes)
            .await
            .map_err(|e| status::from_store(&e))?;
        self.metrics
            .follow_changes
            .inc_by(effects.iter().filter(|effect| effect.changed).count() as u64);
        Ok(effects)
    }

    /// Requests the backfills of follows, given as (author, follower). A Follow returns only after its backfill is
    /// durable, so a caller that gets an error repeats both.
    pub(crate) async fn request_backfills(
        &self,
        follows: impl IntoIterator<Item = (UserKey, UserKey)>,
    ) -> Result<(), Status> {
        if !self.config.backfill {
            return Ok(());
        }
        self.backfills
            .request(follows)
            .await
            .map_err(|error| match error {
                BackfillError::Mesh(e) => status::from_mesh(&e),
                BackfillError::Store(e) => status::from_store(&e),
            })
    }

    /// Looks up the key of a user; `None` if the user has none.
    pub(crate) async fn find_key(&self, field: &str, id: String) -> Result<Option<UserKey>, Status> {
        let id = UserId::new(id).map_err(|e| status::invalid(&[(field, &e.to_string())]))?;
        let keys = self.users.find(&[id]).await.map_err(|e| status::from_store(&e))?;
        Ok(keys.into_iter().next().flatten())
    }

    /// Looks up the ids of users; an empty string for an unknown key.
    pub(crate) async fn find_ids(&self, keys: &[UserKey]) -> Result<Vec<String>, Status> {
        let ids = self.users.ids(keys).await.map_err(|e| status::from_store(&e))?;
        Ok(ids
            .into_iter()
            .map(|id| id.map(UserId::into_string).unwrap_or_default())
            .collect())
    }

    /// Looks up the keys of a batch of ids, or assigns them; each id once.
    pub(crate) async fn intern_all<'a>(
        &self,
        ids: impl Iterator<Item = &'a UserId>,
    ) -> Result<HashMap<UserId, UserKey>, Status> {
        let unique: Vec<_> = ids.collect::<HashSet<_>>().into_iter().cloned().collect();
        let keys = self
            .users
            .intern(&unique)
            .await
            .map_err(|e| status::from_store(&e))?;
        Ok(unique.into_iter().zip(keys).collect())
    }
}
