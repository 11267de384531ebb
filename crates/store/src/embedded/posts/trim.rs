//! Removal of request ids and posts that are past their retention.

use std::{ops::Bound, sync::atomic::Ordering};

use herald_model::{PostId, UserKey, time::Timestamp};
use prost::Message as _;

use super::{CommitBatch, EmbeddedPosts, Job, Row, Tables, by_author_key, corrupt, decode_id};
use crate::{
    ErrorKind, Result,
    embedded::database::map_err,
    removed_posts::{RemovedPosts, STEP_MIN},
};

/// Maximum number of request ids that one commit removes.
const REQUESTS_MAX: usize = 10_000;

/// Maximum number of posts that one commit removes.
const POSTS_MAX: usize = 2_000;

impl EmbeddedPosts {
    /// Finds the first post from `from` on that was accepted at `moment` or later; one past the last post if all are
    /// older. Posts less than `from` are taken for older.
    ///
    /// Ids ascend in the order in which posts were accepted, and the clocks of gateways may be wrong: a post is older
    /// only if all before it are. One whose clock was behind is as old as those before it; one whose clock was ahead keeps
    /// those after it.
    pub(crate) fn first_retained(&self, from: PostId, moment: Timestamp) -> Result<PostId> {
        let (first, removed) = {
            let removed = self.tables.removed.lock();
            (removed.first(), removed.first_since(moment))
        };
        if let Some(removed) = removed
            && from < first
        {
            return Ok(from.max(removed).max(PostId(1)));
        }
        let from = from.max(first);
        let mut next = from.max(PostId(1));
        for row in self.tables.posts.range(from.0.to_be_bytes()..) {
            let (key, value) = row.into_inner().map_err(map_err)?;
            let row = Row::decode(value.as_ref()).map_err(|_| corrupt("post"))?;
            if row.accepted_at >= moment.0 {
                break;
            }
            next = PostId(decode_id(&key)? + 1);
        }
        Ok(next)
    }

    /// Removes request ids past their retention and returns their number.
    pub(crate) async fn trim(&self, now: Timestamp) -> Result<usize> {
        let mut removed = 0;
        loop {
            match self.writes.run(Job::TrimRequests(now)).await? {
                0 => return Ok(removed),
                some => removed += some,
            }
        }
    }

    /// Removes the posts that were accepted before a time, except the newest one, and returns their number.
    /// [`first_retained`](Self::first_retained) still answers for the time `ages_since` and later ones.
    pub(crate) async fn trim_posts(&self, before: Timestamp, ages_since: Timestamp) -> Result<usize> {
        let removed = self.tables.removed.lock().clone();
        if removed
            .last_moment()
            .is_none_or(|last| before.since(last) >= STEP_MIN)
            && let Some(last) = crate::Posts::last(self).await?
        {
            let first = self.first_retained(removed.first(), before)?.min(last);
            if first > removed.first() {
                self.writes
                    .run(Job::HidePosts {
                        before,
                        first,
                        ages_since,
                    })
                    .await?;
            }
        }
        let mut count = 0;
        loop {
            match self.writes.run(Job::TrimPosts).await? {
                0 => return Ok(count),
                some => count += some,
            }
        }
    }
}

impl Tables {
    /// Removes request ids past their retention. It is a job of the writer thread, so that it can't remove a request id
    /// that was written again meanwhile.
    pub(super) fn trim_requests(&self, pending: &mut CommitBatch, now: Timestamp) -> Result<usize> {
        let keep = i64::try_from(self.request_keep.as_micros()).unwrap_or(i64::MAX);
        let end = now.0.saturating_sub(keep).max(0).to_be_bytes();
        let mut removed = 0;
        for row in self.request_times.range(..end).take(REQUESTS_MAX) {
            let time_key = row.key().map_err(map_err)?;
            let (Some(at), Some(key)) = (time_key.get(..8), time_key.get(8..)) else {
                return Err(corrupt("request time"));
            };
            if self
                .request(key)?
                .is_some_and(|request| request.at.0.to_be_bytes() == at)
            {
                pending.batch.remove(&self.requests, key);
            }
            pending.batch.remove(&self.request_times, time_key);
            removed += 1;
        }
        Ok(removed)
    }

    /// Records that the posts less than `first` are removed: messages about them are ignored from now on, and
    /// [`trim_posts`](Self::trim_posts) removes their rows.
    pub(super) fn hide_posts(&self, before: Timestamp, first: PostId, ages_since: Timestamp) -> Result<()> {
        let mut removed = self.removed.lock().clone();
        let mut pending = CommitBatch::new(&self.database);
        for moment in removed.hide(before, first, ages_since) {
            pending.batch.remove(&self.removed_rows, moment.0.to_be_bytes());
        }
        let (moment, first) = (before.0.to_be_bytes(), first.0.to_be_bytes());
        pending.batch.insert(&self.removed_rows, moment, first);
        self.commit(pending)?;
        *self.removed.lock() = removed;
        Ok(())
    }

    /// Reads which posts were removed.
    pub(super) fn read_removed(&self) -> Result<RemovedPosts> {
        let rows = self.removed_rows.iter().map(|row| {
            let (moment, first) = row.into_inner().map_err(map_err)?;
            let moment = (*moment)
                .try_into()
                .map_err(|_| corrupt("time of removed posts"))?;
            Ok((Timestamp(i64::from_be_bytes(moment)), PostId(decode_id(&first)?)))
        });
        rows.collect::<Result<_>>().map(RemovedPosts::new)
    }

    /// Removes the rows of some removed posts, and then deletions of posts that never came. Returns the number of both;
    /// 0 if none are left.
    pub(super) fn trim_posts(&self, pending: &mut CommitBatch) -> Result<usize> {
        let (from, end) = (self.trimmed.load(Ordering::Relaxed), self.first());
        let range = || {
            (
                Bound::Included(from.to_be_bytes()),
                Bound::Excluded(end.to_be_bytes()),
            )
        };
        let mut removed = 0;
        for row in self.posts.range(range()).take(POSTS_MAX) {
            let key = row.key().map_err(map_err)?;
            self.remove_post(pending, decode_id(&key)?)?;
            removed += 1;
        }
        if removed == 0 {
            // Deletions of posts that never came.
            for row in self.deletions.range(range()).take(POSTS_MAX) {
                pending.batch.remove(&self.deletions, row.key().map_err(map_err)?);
                removed += 1;
            }
        }
        if removed == 0 {
            self.trimmed.store(end, Ordering::Relaxed);
        }
        Ok(removed)
    }

    fn remove_post(&self, pending: &mut CommitBatch, post: u64) -> Result<()> {
        match self.row(post) {
            Ok(Some(row)) => {
                let author = UserKey(row.author);
                self.remove_request(pending, author, &row.request_id, post)?;
                pending.batch.remove(&self.by_author, by_author_key(author, post));
                if let Some(at) = self.deletion(post)? {
                    self.remove_text(pending, author, post, at);
                }
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::error!(post_id = post, %error, "a damaged post is removed");
            }
            row => drop(row?),
        }
        pending.batch.remove(&self.posts, post.to_be_bytes());
        pending.batch.remove(&self.deletions, post.to_be_bytes());
        pending.changed.push(post);
        Ok(())
    }

    /// The first post that is not removed.
    pub(super) fn first(&self) -> u64 {
        self.removed.lock().first().0
    }
}
