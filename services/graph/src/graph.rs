//! Operations shared by the calls of GraphService: lookup of users, changes of follows, backfills.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
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
    quota::{self, FollowQuota, Reserved},
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
    pub(crate) quota: FollowQuota,
}

impl Graph {
    /// Applies validated changes within the quotas of their followers; returns the effect of each.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, `QUOTA_EXCEEDED`, for a new follow without room; then no change is applied. `field` names
    /// the field of a change by its index.
    pub(crate) async fn apply(
        &self,
        changes: &[FollowChange],
        field: impl Fn(usize) -> String,
    ) -> Result<Vec<FollowEffect>, Status> {
        let (reserved, refused) = self.reserve(changes).await?;
        if let Some(first) = refused.first() {
            return Err(quota::exceeded(&field(*first)));
        }
        self.apply_reserved(changes, reserved).await
    }

    /// Takes places in the quotas of the followers, and returns the indices of the changes that have none.
    pub(crate) async fn reserve(
        &self,
        changes: &[FollowChange],
    ) -> Result<(Reserved, BTreeSet<usize>), Status> {
        let places = self.quota.reserve(changes).await;
        let (reserved, refused) = places.map_err(|e| status::from_store(&e))?;
        self.metrics.follows_refused.inc_by(refused.len() as u64);
        Ok((reserved, refused))
    }

    /// Applies changes that have places.
    pub(crate) async fn apply_reserved(
        &self,
        changes: &[FollowChange],
        reserved: Reserved,
    ) -> Result<Vec<FollowEffect>, Status> {
        let effects = self
            .follows
            .apply(changes)
            .await
            .map_err(|e| status::from_store(&e))?;
        self.quota.applied(changes, &effects, reserved);
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
