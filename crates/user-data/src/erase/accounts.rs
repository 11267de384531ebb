//! Removes devices, preferences and follows, also those that can't be decoded.

use herald_model::UserKey;
use herald_store::{ErasedCounts, ErrorKind, FollowChange};

use super::Erase;
use crate::{Error, Result};

/// Follows removed at once.
const PAGE: usize = 512;

impl Erase<'_> {
    pub(super) async fn accounts(&self) -> Result<()> {
        let (stores, user) = (&self.data.stores, self.erasure.user);
        let devices = stores.devices.erase(user).await?;
        self.count(ErasedCounts {
            devices,
            ..ErasedCounts::default()
        })
        .await?;
        stores.preferences.erase(user).await?;
        self.follows().await
    }

    /// Removes the follows of the user, and those of the user's followers.
    async fn follows(&self) -> Result<()> {
        let error = match self.unfollow_all().await {
            Err(Error::Store(error)) if error.kind() == ErrorKind::Corrupt => error,
            done => return done,
        };
        let erasure_id = self.erasure.id.0;
        tracing::error!(%error, erasure_id, "damaged follows of an erased user are removed");
        let follows = self.data.stores.follows.erase(self.erasure.user).await?;
        self.count_follows(follows).await
    }

    async fn unfollow_all(&self) -> Result<()> {
        let (follows, user) = (&self.data.stores.follows, self.erasure.user);
        loop {
            let page = follows.following(user, None, PAGE).await?;
            if page.is_empty() {
                break;
            }
            self.unfollow(page.iter().map(|following| (user, following.author)))
                .await?;
        }
        loop {
            let page = follows.followers(user, None, None, PAGE).await?;
            if page.followers.is_empty() {
                return Ok(());
            }
            self.unfollow(page.followers.iter().map(|follower| (follower, user)))
                .await?;
        }
    }

    /// Removes the follows of these followers and authors, which were just read.
    async fn unfollow(&self, pairs: impl Iterator<Item = (UserKey, UserKey)>) -> Result<()> {
        let changes = pairs.map(|(follower, author)| FollowChange::unfollow(follower, author));
        let changes: Vec<_> = changes.collect();
        let effects = self.data.stores.follows.apply(&changes).await?;
        let follows = effects.iter().filter(|effect| effect.changed).count() as u64;
        if follows == 0 {
            // The next page would be the same.
            let message = "the follows of a user contradict those of the authors";
            return Err(herald_store::Error::new(ErrorKind::Corrupt, message).into());
        }
        self.count_follows(follows).await
    }

    async fn count_follows(&self, follows: u64) -> Result<()> {
        self.count(ErasedCounts {
            follows,
            ..ErasedCounts::default()
        })
        .await
    }
}
