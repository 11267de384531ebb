//! Removes devices, preferences and follows.

use herald_model::UserKey;
use herald_store::{ErasedCounts, FollowAction, FollowChange, PreferencesChange};

use super::Erase;
use crate::Result;

/// Follows removed at once.
const PAGE: usize = 512;

impl Erase<'_> {
    pub(super) async fn accounts(&self) -> Result<()> {
        self.devices().await?;
        self.preferences().await?;
        self.follows().await
    }

    async fn devices(&self) -> Result<()> {
        let (stores, user) = (&self.data.stores, self.erasure.user);
        let mut devices = 0;
        for device in stores.devices.of(&[user]).await?.into_iter().flatten() {
            devices += u64::from(stores.devices.unregister(user, device.id).await?);
        }
        self.count(ErasedCounts {
            devices,
            ..ErasedCounts::default()
        })
        .await
    }

    async fn preferences(&self) -> Result<()> {
        let defaults = herald_model::Preferences::default();
        let change = PreferencesChange {
            push_enabled: Some(defaults.push_enabled),
            muted: Some(Vec::new()),
            ..PreferencesChange::default()
        };
        self.data
            .stores
            .preferences
            .update(self.erasure.user, &change)
            .await?;
        Ok(())
    }

    /// Removes the follows of the user, and those of the user's followers.
    async fn follows(&self) -> Result<()> {
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

    /// Removes the follows of these followers and authors.
    async fn unfollow(&self, pairs: impl Iterator<Item = (UserKey, UserKey)>) -> Result<()> {
        let changes: Vec<_> = pairs
            .map(|(follower, author)| FollowChange {
                follower,
                author,
                action: FollowAction::Unfollow,
            })
            .collect();
        let effects = self.data.stores.follows.apply(&changes).await?;
        let follows = effects.iter().filter(|effect| effect.changed).count() as u64;
        self.count(ErasedCounts {
            follows,
            ..ErasedCounts::default()
        })
        .await
    }
}
