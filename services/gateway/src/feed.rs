//! Reads timelines without the posts that are hidden from the user.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use herald_model::{Post, PostId, UserKey};
use herald_posts::{PostReader, ReadError};
use herald_proto::v1::RemovalReason;
use herald_rpc::status;
use herald_store::{Preferences, TimelinePage, Timelines};
use moka::future::Cache;
use tonic::Status;

use crate::{Metrics, error::read_error_to_status};

/// Time to live of a cached live post. It is short, because a cached post hides a later deletion, and because all
/// watchers read a post at nearly the same time.
const LIVE_POST_TTL: Duration = Duration::from_secs(2);
/// Estimated size of a post without its text and URLs, bytes.
const POST_OVERHEAD_BYTES: usize = 512;
/// Maximum total size of the posts in one response, bytes. gRPC clients refuse responses over 4 MiB by default. A post
/// has at most 106 KB, so only pages of very long posts end early.
pub(crate) const RESPONSE_BYTES_MAX: usize = 3 << 20;
/// Maximum number of reads for one page. After the last read the page is returned even if it is not full.
const READS_MAX: usize = 5;
/// Minimum number of posts in each further read of a page, after the first read had hidden posts.
const REREAD_MIN: usize = 200;

/// Reads timelines and skips deleted posts and posts of muted authors. Clones share the cache.
#[derive(Clone)]
pub(crate) struct Feed {
    timelines: Arc<dyn Timelines>,
    preferences: Arc<dyn Preferences>,
    reader: PostReader,
    metrics: Metrics,
    live_posts: Cache<PostId, Option<Arc<Post>>>,
}

/// A page of a timeline, newest first.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) posts: Vec<Post>,
    /// The next page holds posts with ids less than this one; `None` on the last page.
    pub(crate) next: Option<PostId>,
    /// Whether posts can be missing because the timeline is being rebuilt.
    pub(crate) rebuilding: bool,
}

impl Feed {
    pub(crate) fn new(
        timelines: Arc<dyn Timelines>,
        preferences: Arc<dyn Preferences>,
        reader: PostReader,
        metrics: Metrics,
        live_post_bytes_max: u64,
    ) -> Self {
        let live_posts = Cache::builder()
            .max_capacity(live_post_bytes_max)
            .weigher(|_, post: &Option<Arc<Post>>| {
                u32::try_from(post.as_deref().map_or(POST_OVERHEAD_BYTES, estimated_bytes))
                    .unwrap_or(u32::MAX)
            })
            .time_to_live(LIVE_POST_TTL)
            .build();
        Self {
            timelines,
            preferences,
            reader,
            metrics,
            live_posts,
        }
    }

    /// The authors that a user has muted.
    pub(crate) async fn muted_authors(&self, user: UserKey) -> Result<BTreeSet<UserKey>, Status> {
        let preferences = self
            .preferences
            .of(&[user])
            .await
            .map_err(|e| status::from_store(&e))?;
        Ok(preferences.into_iter().next().unwrap_or_default().muted)
    }

    /// Up to `limit` posts on the user's timeline that are less than `before`, newest first.
    pub(crate) async fn newest_ids(
        &self,
        user: UserKey,
        before: Option<PostId>,
        limit: usize,
    ) -> Result<TimelinePage, Status> {
        let page = self.timelines.newest(user, before, limit).await;
        page.map_err(|e| status::from_store(&e))
    }

    /// Reads posts, in the order of `ids`; `None` for a hidden or missing post.
    pub(crate) async fn read_visible(
        &self,
        ids: &[PostId],
        muted: &BTreeSet<UserKey>,
    ) -> Result<Vec<Option<Post>>, Status> {
        let mut posts = self
            .reader
            .read(ids)
            .await
            .map_err(|e| read_error_to_status(&e))?;
        for post in &mut posts {
            match post {
                None => _ = self.metrics.posts_missing.inc(),
                Some(found) if is_hidden(found, muted) => *post = None,
                Some(_) => {}
            }
        }
        Ok(posts)
    }

    /// Reads one post for a watcher; `None` for a hidden or missing post. All watchers of a post share one read.
    pub(crate) async fn read_visible_live(
        &self,
        id: PostId,
        muted: &BTreeSet<UserKey>,
    ) -> Result<Option<Arc<Post>>, Status> {
        let read = async { Ok::<_, ReadError>(self.reader.read_one(id).await?.map(Arc::new)) };
        match self.live_posts.try_get_with(id, read).await {
            Ok(Some(post)) => Ok(Some(post).filter(|post| !is_hidden(post, muted))),
            Ok(None) => {
                self.metrics.posts_missing.inc();
                Ok(None)
            }
            Err(error) => Err(read_error_to_status(&error)),
        }
    }

    /// Finds the posts among `ids` that are hidden from a user with these muted authors.
    pub(crate) async fn find_hidden(
        &self,
        ids: &[PostId],
        muted: &BTreeSet<UserKey>,
    ) -> Result<Vec<(PostId, RemovalReason)>, Status> {
        let posts = self.reader.read(ids).await;
        let posts = posts.map_err(|e| read_error_to_status(&e))?;
        let hidden = posts.into_iter().flatten().filter_map(|post| {
            let reason = if post.deleted_at.is_some() {
                RemovalReason::Deleted
            } else if muted.contains(&post.author) {
                RemovalReason::Muted
            } else {
                return None;
            };
            Some((post.id, reason))
        });
        Ok(hidden.collect())
    }

    /// Removes a deleted post from the cache of live posts.
    pub(crate) async fn forget_live(&self, id: PostId) {
        self.live_posts.invalidate(&id).await;
    }

    /// Counts posts whose live message was lost and that a comparison with the store found.
    pub(crate) fn count_recovered(&self, posts: usize) {
        self.metrics.live_entries_recovered.inc_by(posts as u64);
    }

    /// Reads a page of up to `size` posts with ids less than `before`. Hidden posts are skipped, with at most
    /// `READS_MAX` reads.
    pub(crate) async fn read_page(
        &self,
        user: UserKey,
        mut before: Option<PostId>,
        size: usize,
    ) -> Result<Page, Status> {
        let muted = self.muted_authors(user).await?;
        let mut posts = Vec::with_capacity(size);
        let mut bytes = 0;
        let mut rebuilding = false;
        for read in 0..READS_MAX {
            let missing = size - posts.len();
            let limit = if read == 0 {
                missing
            } else {
                missing.max(REREAD_MIN)
            };
            // One extra id shows whether there is a next page.
            let TimelinePage {
                posts: mut ids,
                rebuilding: incomplete,
            } = self.newest_ids(user, before, limit + 1).await?;
            rebuilding |= incomplete;
            let mut more = ids.len() > limit;
            ids.truncate(limit);
            let mut full = false;
            for (id, post) in ids.iter().zip(self.read_visible(&ids, &muted).await?) {
                bytes += post.as_ref().map_or(0, estimated_bytes);
                full = posts.len() == size || bytes > RESPONSE_BYTES_MAX;
                if full {
                    more = true;
                    break;
                }
                before = Some(*id);
                posts.extend(post);
            }
            if !more {
                return Ok(Page {
                    posts,
                    next: None,
                    rebuilding,
                });
            }
            if full || posts.len() == size {
                break;
            }
        }
        Ok(Page {
            posts,
            next: before,
            rebuilding,
        })
    }
}

fn is_hidden(post: &Post, muted: &BTreeSet<UserKey>) -> bool {
    post.deleted_at.is_some() || muted.contains(&post.author)
}

/// Estimated size of a post, bytes.
pub(crate) fn estimated_bytes(post: &Post) -> usize {
    let urls: usize = post.links.iter().chain(&post.media_urls).map(String::len).sum();
    // The rest, such as the title of the pushes, is part of the overhead or small beside a long text.
    let data: usize = post
        .push
        .data
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    POST_OVERHEAD_BYTES + post.text.len() + urls + data
}
