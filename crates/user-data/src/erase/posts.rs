//! Deletes the posts of the user, and removes their texts.

use std::pin::pin;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use herald_mesh::{Subject, streams};
use herald_model::{Post, PostId, UserKey, time::Timestamp};
use herald_proto::mesh_v1::{LiveUpdates, PostCreated, PostDeleted};
use herald_store::{Archived, ErasedCounts, ErrorKind};
use prost::Message as _;

use super::{Erase, messages::Found};
use crate::Result;

/// Posts deleted, or whose texts are removed, at once.
const PAGE: usize = 256;
/// Deletions published at once.
const PUBLISHED_AT_ONCE: usize = 32;

impl Erase<'_> {
    /// The posts of the user in POSTS.
    pub(super) async fn find_posts(&self) -> Result<Vec<Found>> {
        let messages = self
            .data
            .mesh
            .scan(streams::POSTS, Some("post.v1.created.*"), 1, u64::MAX);
        let mut messages = pin!(messages);
        let mut found = Vec::new();
        while let Some(message) = messages.try_next().await? {
            if let Ok(post) = PostCreated::decode(message.payload.clone())
                && self.author.wrote(PostId(message.sequence), &post)
            {
                found.push(Found {
                    has_key: post.author_key != herald_posts::NO_KEY.0,
                    ..Found::from(&message)
                });
            }
        }
        Ok(found)
    }

    /// Deletes the posts of the user as DeletePost does. Returns those that lack the key of the user: their messages
    /// have none, and the archive can have given them the key of a new user with the same id.
    pub(super) async fn delete_posts(&self, found: &[Found]) -> Result<Vec<PostId>> {
        self.delete_archived().await?;
        let keyless = found.iter().filter(|message| !message.has_key);
        let mut keyless: Vec<_> = keyless.map(|message| PostId(message.sequence)).collect();
        for page in keyless.chunks(PAGE) {
            self.delete(page).await?;
        }
        keyless.extend(self.find_deleted_of_new_user().await?);
        keyless.sort_unstable();
        keyless.dedup();
        Ok(keyless)
    }

    /// The deleted posts of a new user with the same id that can be the erased user's: when an erasure is repeated,
    /// their messages are gone. Posts that the new user has deleted are among them: their texts go earlier then.
    async fn find_deleted_of_new_user(&self) -> Result<Vec<PostId>> {
        let posts = &self.data.stores.posts;
        let Some(user) = self.new_user().await? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let mut page = posts.of_author(user, after, PAGE).await?;
            page.retain(|post| *post <= self.author.last_post);
            let Some(last) = page.last() else {
                return Ok(found);
            };
            after = Some(*last);
            let read = self.read(&page).await?;
            let deleted = read.iter().filter(|post| post.deleted_at.is_some());
            found.extend(deleted.map(|post| post.id));
        }
    }

    /// Deletes the posts of the user that the archive has.
    pub(super) async fn delete_archived(&self) -> Result<()> {
        let posts = &self.data.stores.posts;
        // Pages by id, because damaged posts are not deleted before their texts are removed.
        let mut up_to = PostId(u64::MAX);
        loop {
            let page = posts.newest_by_author(self.erasure.user, up_to, PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            self.delete(&page).await?;
            up_to = PostId(last.0.saturating_sub(1));
        }
    }

    /// Reads posts, except damaged ones.
    async fn read(&self, ids: &[PostId]) -> Result<Vec<Post>> {
        let posts = &self.data.stores.posts;
        match posts.get(ids).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            read => return Ok(read?.into_iter().flatten().collect()),
        }
        let mut read = Vec::with_capacity(ids.len());
        for id in ids {
            match posts.get(&[*id]).await {
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                one => read.extend(one?.into_iter().flatten()),
            }
        }
        Ok(read)
    }

    /// Publishes the deletions of posts, and writes them to the archive. Posts that are deleted already stay as they
    /// are.
    async fn delete(&self, ids: &[PostId]) -> Result<()> {
        let mut posts = self.read(ids).await?;
        posts.retain(|post| post.deleted_at.is_none());
        if posts.is_empty() {
            return Ok(());
        }
        let at = Timestamp::now();
        let publishing = posts.iter().map(|post| self.publish_deletion(post, at));
        stream::iter(publishing.collect::<Vec<_>>())
            .buffer_unordered(PUBLISHED_AT_ONCE)
            .try_collect::<()>()
            .await?;
        let deletions = posts.iter().map(|post| Archived::Deleted { post: post.id, at });
        let deletions: Vec<_> = deletions.collect();
        self.data.stores.posts.archive(&deletions).await?;
        // A watch that misses this message finds the deletion when it compares its entries with the store.
        let live = LiveUpdates {
            deleted_post_ids: posts.iter().map(|post| post.id.0).collect(),
            ..LiveUpdates::default()
        };
        if let Err(error) = self.data.mesh.publish_live(live.encode_to_vec().into()).await {
            tracing::debug!(%error, erasure_id = self.erasure.id.0, "deletions not published to watchers");
        }
        Ok(())
    }

    async fn publish_deletion(&self, post: &Post, at: Timestamp) -> Result<()> {
        let deleted = PostDeleted {
            post_id: post.id.0,
            author_key: post.author.0,
            deleted_at_us: at.0,
        };
        // The message id that the gateway uses for a deletion too.
        let id = format!("{}/deleted", post.id);
        self.data
            .mesh
            .publish(Subject::PostDeleted(post.lane), Some(&id), &deleted)
            .await?;
        Ok(())
    }

    /// Removes the texts of the deleted posts from the archive.
    pub(super) async fn texts(&self, keyless: &[PostId]) -> Result<()> {
        let mut after = None;
        loop {
            let page = self
                .data
                .stores
                .posts
                .of_author(self.erasure.user, after, PAGE)
                .await?;
            let Some(last) = page.last() else {
                break;
            };
            after = Some(*last);
            self.erase_damaged(self.erasure.user, &page).await?;
            self.erase_texts(&page).await?;
        }
        let archived_for = self.new_user().await?;
        for page in keyless.chunks(PAGE) {
            if let Some(user) = archived_for {
                self.erase_damaged(user, page).await?;
            }
            self.erase_texts(page).await?;
        }
        Ok(())
    }

    /// The user who has the id now: the author of keyless posts that were archived after the id was forgotten. If that
    /// user is erased too, the later erasure removes what is left of them.
    async fn new_user(&self) -> Result<Option<UserKey>> {
        let id = std::slice::from_ref(self.author.id);
        let found = self.data.stores.users.find(id).await?;
        Ok(found.into_iter().next().flatten())
    }

    /// Removes the texts of those of these posts of an author that are damaged. They were not deleted, so watchers were
    /// not told.
    async fn erase_damaged(&self, author: UserKey, ids: &[PostId]) -> Result<()> {
        let posts = &self.data.stores.posts;
        let damaged = posts.erase_damaged(author, ids, Timestamp::now()).await?;
        for post in &damaged {
            tracing::error!(
                erasure_id = self.erasure.id.0,
                post_id = post.0,
                "erased a damaged post: its lane and the time of its acceptance can be wrong now"
            );
        }
        self.count(ErasedCounts {
            posts: damaged.len() as u64,
            ..ErasedCounts::default()
        })
        .await
    }

    async fn erase_texts(&self, ids: &[PostId]) -> Result<()> {
        let posts = self.data.stores.posts.erase_texts(ids).await?;
        self.count(ErasedCounts {
            posts,
            ..ErasedCounts::default()
        })
        .await
    }
}
