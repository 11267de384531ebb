//! Removal of the texts of deleted posts, and the index of those that are held.

use std::ops::Bound;

use fjall::Readable;
use herald_model::{PostId, UserKey, time::Timestamp};
use prost::Message;

use super::{
    CommitBatch, EmbeddedPosts, Job, Tables, by_author_key, decode_id, request_key,
    row::{Request, Row},
    time_key,
};
use crate::{ErrorKind, Result, embedded::database::map_err};

/// Maximum number of posts whose texts one commit removes.
const TEXTS_MAX: usize = 2_000;

/// The row of `posts_state` that says that the texts of all deleted posts are indexed.
const INDEXED: &str = "deleted texts indexed";

impl EmbeddedPosts {
    /// Lists up to `limit` posts of an author, as [`Posts::of_author`](crate::Posts::of_author) does.
    pub(super) fn texts_of(
        &self,
        author: UserKey,
        after: Option<PostId>,
        limit: usize,
    ) -> Result<Vec<PostId>> {
        let tables = &self.tables;
        let snapshot = tables.database.snapshot();
        // The keys sort the newest post first, so later posts come before `after`.
        let newest = by_author_key(author, u64::MAX);
        let after_key = match after {
            Some(after) => Bound::Excluded(by_author_key(author, after.0)),
            None => Bound::Included(by_author_key(author, 0)),
        };
        let shown = snapshot
            .range(&tables.by_author, (Bound::Included(newest), after_key))
            .rev()
            .take(limit)
            .map(|row| {
                let key = row.key().map_err(map_err)?;
                Ok(!decode_id(key.get(4..).unwrap_or_default())?)
            });
        let from = match after {
            Some(after) => Bound::Excluded(text_key(author, after.0)),
            None => Bound::Included(text_key(author, 0)),
        };
        let last = Bound::Included(text_key(author, u64::MAX));
        let deleted = snapshot
            .range(&tables.deleted_texts, (from, last))
            .take(limit)
            .map(|row| {
                let key = row.key().map_err(map_err)?;
                decode_id(key.get(4..).unwrap_or_default())
            });
        let mut posts: Vec<u64> = shown.chain(deleted).collect::<Result<_>>()?;
        posts.sort_unstable();
        posts.truncate(limit);
        Ok(posts.into_iter().map(PostId).collect())
    }

    /// Removes texts as [`Posts::erase_texts`](crate::Posts::erase_texts) does.
    pub(super) async fn erase(&self, posts: &[PostId]) -> Result<usize> {
        let mut posts: Vec<u64> = posts.iter().map(|post| post.0).collect();
        posts.sort_unstable();
        posts.dedup();
        let mut erased = 0;
        for posts in posts.chunks(TEXTS_MAX) {
            erased += self.writes.run(Job::EraseTexts(posts.to_vec())).await?;
        }
        Ok(erased)
    }

    /// Removes the texts of damaged posts as [`Posts::erase_damaged`](crate::Posts::erase_damaged) does.
    pub(super) async fn erase_damaged_of(
        &self,
        author: UserKey,
        posts: &[PostId],
        at: Timestamp,
    ) -> Result<Vec<PostId>> {
        let mut damaged = Vec::new();
        for post in posts {
            if self.tables.is_damaged(author, post.0)? {
                damaged.push(*post);
            }
        }
        damaged.sort_unstable();
        damaged.dedup();
        for posts in damaged.chunks(TEXTS_MAX) {
            let posts = posts.iter().map(|post| post.0).collect();
            self.writes.run(Job::EraseDamaged { author, posts, at }).await?;
        }
        Ok(damaged)
    }

    /// Removes the texts of the posts that were deleted before a time, and returns their number.
    pub(crate) async fn trim_texts(&self, before: Timestamp) -> Result<usize> {
        let mut erased = 0;
        loop {
            match self.writes.run(Job::TrimTexts(before)).await? {
                0 => return Ok(erased),
                some => erased += some,
            }
        }
    }
}

impl Tables {
    /// Indexes the texts of the posts that were deleted before there was an index. A start with a full disk leaves that
    /// to the next one: the store must open, so that what it holds can be delivered.
    pub(super) fn index_texts(&self) -> Result<()> {
        match self.index_earlier_texts() {
            Err(error) if error.kind() == ErrorKind::Full => {
                tracing::warn!(
                    %error,
                    "texts of posts deleted by an earlier version are not indexed: retention and erasures don't find \
                     them until a start with free disk space"
                );
                Ok(())
            }
            indexed => indexed,
        }
    }

    fn index_earlier_texts(&self) -> Result<()> {
        if self.state.contains_key(INDEXED).map_err(map_err)? {
            return Ok(());
        }
        let mut pending = CommitBatch::new(&self.database);
        for row in self.deletions.iter() {
            let post = decode_id(&row.key().map_err(map_err)?)?;
            let row = match self.row(post) {
                // Reads of the post report the damage.
                Err(error) if error.kind() == ErrorKind::Corrupt => None,
                row => row?,
            };
            if let (Some(row), Some(at)) = (row, self.deletion(post)?) {
                self.add_text(&mut pending, UserKey(row.author), post, at);
            }
            if pending.batch.len() >= TEXTS_MAX {
                let full = std::mem::replace(&mut pending, CommitBatch::new(&self.database));
                self.commit(full)?;
            }
        }
        pending.batch.insert(&self.state, INDEXED, []);
        self.commit(pending)
    }

    /// Adds the text of a deleted post to the indexes.
    pub(super) fn add_text(&self, pending: &mut CommitBatch, author: UserKey, post: u64, at: Timestamp) {
        let batch = &mut pending.batch;
        batch.insert(&self.deleted_texts, text_key(author, post), []);
        batch.insert(&self.deleted_text_times, text_time_key(at, post), []);
    }

    /// Removes a text from the indexes. The text itself stays.
    pub(super) fn remove_text(&self, pending: &mut CommitBatch, author: UserKey, post: u64, at: Timestamp) {
        let batch = &mut pending.batch;
        batch.remove(&self.deleted_texts, text_key(author, post));
        batch.remove(&self.deleted_text_times, text_time_key(at, post));
    }

    /// Removes the texts of those of these posts that are deleted. Returns their number.
    pub(super) fn erase_texts(&self, pending: &mut CommitBatch, posts: &[u64]) -> Result<usize> {
        let mut erased = 0;
        for post in posts {
            erased += usize::from(self.erase_text(pending, *post)?);
        }
        Ok(erased)
    }

    /// Removes the texts of posts that were deleted before a time. Returns the number of index entries that it did,
    /// also those of damaged posts; 0 if none are left.
    pub(super) fn trim_texts(&self, pending: &mut CommitBatch, before: Timestamp) -> Result<usize> {
        let end = text_time_key(before, 0);
        let mut removed = 0;
        for row in self.deleted_text_times.range(..end).take(TEXTS_MAX) {
            let key = row.key().map_err(map_err)?;
            let post = decode_id(key.get(8..).unwrap_or_default())?;
            match self.erase_text(pending, post) {
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    tracing::error!(post_id = post, %error, "can't remove the text of a deleted post");
                    pending.batch.remove(&self.deleted_text_times, &*key);
                }
                Ok(false) => pending.batch.remove(&self.deleted_text_times, &*key),
                Ok(true) => {}
                Err(error) => return Err(error),
            }
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes the text of a post. Returns whether it had one, and is deleted.
    fn erase_text(&self, pending: &mut CommitBatch, post: u64) -> Result<bool> {
        let Some(at) = self.deletion(post)? else {
            return Ok(false);
        };
        let Some(row) = self.row(post)?.filter(|row| !row.is_erased()) else {
            return Ok(false);
        };
        let author = UserKey(row.author);
        self.remove_request(pending, author, &row.request_id, post)?;
        self.remove_text(pending, author, post, at);
        pending
            .batch
            .insert(&self.posts, post.to_be_bytes(), row.erased().encode_to_vec());
        pending.changed.push(post);
        Ok(true)
    }

    /// Whether a post can't be decoded, and is one of this author whose text is held. Only the indexes have the authors
    /// of such posts.
    fn is_damaged(&self, author: UserKey, post: u64) -> Result<bool> {
        let row = self.posts.get(post.to_be_bytes()).map_err(map_err)?;
        if row.is_none_or(|row| !Row::is_damaged(PostId(post), &row)) {
            return Ok(false);
        }
        let shown = self.by_author.contains_key(by_author_key(author, post));
        let deleted = self.deleted_texts.contains_key(text_key(author, post));
        Ok(shown.map_err(map_err)? || deleted.map_err(map_err)?)
    }

    /// Removes the texts of those of these posts of an author that are damaged, and deletes them. Returns their number.
    pub(super) fn erase_damaged(
        &self,
        pending: &mut CommitBatch,
        author: UserKey,
        posts: &[u64],
        at: Timestamp,
    ) -> Result<usize> {
        let mut erased = 0;
        for post in posts {
            if !self.is_damaged(author, *post)? {
                continue;
            }
            let row = Row::erased_damaged(author, self.accepted_before(*post)?);
            let batch = &mut pending.batch;
            batch.insert(&self.posts, post.to_be_bytes(), row.encode_to_vec());
            batch.remove(&self.by_author, by_author_key(author, *post));
            match self.deletion(*post)? {
                Some(at) => self.remove_text(pending, author, *post, at),
                None => batch.insert(&self.deletions, post.to_be_bytes(), at.0.to_be_bytes()),
            }
            pending.changed.push(*post);
            erased += 1;
        }
        if erased > 0 {
            // The request ids can't be read from the posts.
            for row in self.requests.prefix(author.0.to_be_bytes()) {
                let (key, request) = row.into_inner().map_err(map_err)?;
                let request = Request::decode(&request).filter(|request| posts.contains(&request.post));
                if let Some(request) = request {
                    pending
                        .batch
                        .remove(&self.request_times, time_key(request.at, &key));
                    pending.batch.remove(&self.requests, &*key);
                }
            }
        }
        Ok(erased)
    }

    /// When the post before another one was accepted, as far as one near it can be decoded.
    fn accepted_before(&self, post: u64) -> Result<Timestamp> {
        const READ_MAX: usize = 64;
        for row in self.posts.range(..post.to_be_bytes()).rev().take(READ_MAX) {
            let row = row.value().map_err(map_err)?;
            if let Ok(row) = Row::decode(&*row) {
                return Ok(Timestamp(row.accepted_at));
            }
        }
        Ok(Timestamp(0))
    }

    /// Removes a request id, if it stands for this post.
    pub(super) fn remove_request(
        &self,
        pending: &mut CommitBatch,
        author: UserKey,
        request_id: &str,
        post: u64,
    ) -> Result<()> {
        let key = request_key(author, request_id);
        let Some(request) = self.request(&key)?.filter(|request| request.post == post) else {
            return Ok(());
        };
        pending
            .batch
            .remove(&self.request_times, time_key(request.at, &key));
        pending.batch.remove(&self.requests, key);
        Ok(())
    }
}

/// The key (author, post).
fn text_key(author: UserKey, post: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&author.0.to_be_bytes());
    key[4..].copy_from_slice(&post.to_be_bytes());
    key
}

/// The key (time of the deletion, post).
fn text_time_key(at: Timestamp, post: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&at.0.max(0).to_be_bytes());
    key[8..].copy_from_slice(&post.to_be_bytes());
    key
}
