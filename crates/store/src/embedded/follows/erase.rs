//! Removal of the follows of an erased user, also of those that can't be decoded: by their keys.

use std::sync::Arc;

use fjall::Keyspace;
use herald_model::UserKey;

use super::{
    EmbeddedFollows,
    tables::{Count, Tables, decode_version, pair_key, second_user},
};
use crate::{
    ErrorKind, FollowChange, Follows as _, Result,
    embedded::{blocking::read_blocking, database::map_err},
};

/// Follows removed in a batch.
const BATCH: usize = 1_000;

impl EmbeddedFollows {
    /// Removes all follows of a user as [`Follows::erase`](crate::Follows::erase) does.
    pub(super) async fn erase_all(&self, user: UserKey) -> Result<u64> {
        let following = self.erase_following(user).await?;
        Ok(following + self.erase_followers(user).await?)
    }

    /// Removes the follows of a user.
    async fn erase_following(&self, user: UserKey) -> Result<u64> {
        let tables = Arc::clone(&self.tables);
        let authors = read_blocking("the follows of a user", move || tables.authors_of(user)).await?;
        for authors in authors.chunks(BATCH) {
            if !self.unfollow(user, authors).await? {
                for author in authors {
                    if !self.unfollow(user, &[*author]).await? {
                        tracing::error!(
                            author_key = author.0,
                            "the damaged followers of an author keep an erased user"
                        );
                    }
                }
            }
            // Those that the damaged followers of their authors kept, or never had.
            let rows = authors.iter().map(|author| pair_key(user.0, author.0));
            self.remove(rows).await?;
        }
        Ok(authors.len() as u64)
    }

    /// Ends the follows of a user. Returns false if that needs what can't be decoded; then nothing is changed.
    async fn unfollow(&self, user: UserKey, authors: &[UserKey]) -> Result<bool> {
        let changes = authors.iter().map(|author| FollowChange::unfollow(user, *author));
        match self.apply(&changes.collect::<Vec<_>>()).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(false),
            applied => applied.map(|_| true),
        }
    }

    /// Removes the followers of a user.
    async fn erase_followers(&self, user: UserKey) -> Result<u64> {
        let tables = Arc::clone(&self.tables);
        let read = move || tables.followers_without_blocks(user);
        let followers = read_blocking("the follows of all users", read).await?;
        for followers in followers.chunks(BATCH) {
            let rows = followers.iter().map(|follower| pair_key(follower.0, user.0));
            self.remove(rows).await?;
        }
        // Last, so that a repetition after a crash removes the rest.
        let tables = &self.tables;
        let mut batch = tables.database.batch();
        for row in tables.blocks.prefix(user.0.to_be_bytes()) {
            batch.remove(&tables.blocks, row.key().map_err(map_err)?);
        }
        // The history does not have this version, so earlier ones count as trimmed.
        let count = Count {
            version: tables.last_version(user)? + 1,
            ..Count::default()
        };
        batch.insert(&tables.counts, user.0.to_be_bytes(), count.encode());
        tables.database.commit(batch).await?;
        Ok(followers.len() as u64)
    }

    /// Removes rows of `following`.
    async fn remove(&self, rows: impl Iterator<Item = [u8; 8]>) -> Result<()> {
        let mut batch = self.tables.database.batch();
        for row in rows {
            batch.remove(&self.tables.following, row);
        }
        self.tables.database.commit(batch).await
    }
}

impl Tables {
    /// The authors whom a user follows.
    fn authors_of(&self, user: UserKey) -> Result<Vec<UserKey>> {
        let rows = self.following.prefix(user.0.to_be_bytes());
        rows.map(|row| second_user(&row.key().map_err(map_err)?).map(UserKey))
            .collect()
    }

    /// The followers of a user. Reads the follows of all users, because what the user has of them can be damaged.
    fn followers_without_blocks(&self, user: UserKey) -> Result<Vec<UserKey>> {
        let mut followers = Vec::new();
        for row in self.following.iter() {
            let key = row.key().map_err(map_err)?;
            if second_user(&key)? == user.0
                && let Some(follower) = key.first_chunk()
            {
                followers.push(UserKey(u32::from_be_bytes(*follower)));
            }
        }
        Ok(followers)
    }

    /// The newest version of a user's followers; if it can't be decoded, the newest one in the history.
    fn last_version(&self, user: UserKey) -> Result<u64> {
        match self.count(&self.database.snapshot(), user.0) {
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            count => return Ok(count?.version),
        }
        let newest = last_key(&self.history, user)?;
        Ok(newest.as_deref().and_then(decode_version).unwrap_or(0))
    }
}

/// The greatest key of a keyspace that begins with a user.
fn last_key(keyspace: &Keyspace, user: UserKey) -> Result<Option<fjall::Slice>> {
    let last = keyspace.prefix(user.0.to_be_bytes()).next_back();
    last.map(|row| row.key().map_err(map_err)).transpose()
}
