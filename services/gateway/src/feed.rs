//! What of a timeline a user is shown.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use herald_model::{Post, PostId, UserKey};
use herald_posts::{PostReader, ReadError};
use herald_rpc::status;
use herald_store::{Preferences, Timelines};
use moka::future::Cache;
use tonic::Status;

use crate::{Metrics, error::unreadable};

/// How long a post that is being shown to watchers is kept: many of them want it at the same moment, and a deletion must
/// soon be seen.
const LIVE_POST_AGE_MAX: Duration = Duration::from_secs(2);
/// What a post takes beside its texts, bytes.
const POST_BYTES: usize = 512;
/// What the posts of one answer take at most, bytes: clients refuse answers over 4 MiB by default. The longest post is some
/// 105 KB, so only pages of very long posts end early.
pub(crate) const ANSWER_BYTES_MAX: usize = 3 << 20;
/// How many posts are looked at before a page is answered as it is, however empty.
const READS_MAX: usize = 5;
/// How many posts are looked at in one go, once some were left out.
const READ_AGAIN_MIN: usize = 200;

/// Reads timelines and leaves out deleted posts and muted authors. Cloning shares the cache.
#[derive(Clone)]
pub(crate) struct Feed {
    timelines: Arc<dyn Timelines>,
    preferences: Arc<dyn Preferences>,
    reader: PostReader,
    metrics: Metrics,
    live_posts: Cache<PostId, Option<Arc<Post>>>,
}

/// Some posts of a timeline, newest first.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) posts: Vec<Post>,
    /// Where the next page starts; `None` for the last one.
    pub(crate) next: Option<PostId>,
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
                u32::try_from(post.as_deref().map_or(POST_BYTES, weight)).unwrap_or(u32::MAX)
            })
            .time_to_live(LIVE_POST_AGE_MAX)
            .build();
        Self {
            timelines,
            preferences,
            reader,
            metrics,
            live_posts,
        }
    }

    /// Authors whose posts this user doesn't want to see.
    pub(crate) async fn muted(&self, user: UserKey) -> Result<BTreeSet<UserKey>, Status> {
        let preferences = self
            .preferences
            .of(&[user])
            .await
            .map_err(|e| status::from_store(&e))?;
        Ok(preferences.into_iter().next().unwrap_or_default().muted)
    }

    /// The newest posts' ids, newest first.
    pub(crate) async fn newest(
        &self,
        user: UserKey,
        before: Option<PostId>,
        limit: usize,
    ) -> Result<Vec<PostId>, Status> {
        self.timelines
            .newest(user, before, limit)
            .await
            .map_err(|e| status::from_store(&e))
    }

    /// The posts, `None` where one is not to be shown.
    pub(crate) async fn visible(
        &self,
        ids: &[PostId],
        muted: &BTreeSet<UserKey>,
    ) -> Result<Vec<Option<Post>>, Status> {
        let mut posts = self.reader.read(ids).await.map_err(|e| unreadable(&e))?;
        for post in &mut posts {
            match post {
                None => _ = self.metrics.posts_missing.inc(),
                Some(found) if is_hidden(found, muted) => *post = None,
                Some(_) => {}
            }
        }
        Ok(posts)
    }

    /// One post for a watcher, `None` where it is not to be shown. Reads each post once for all watchers.
    pub(crate) async fn visible_live(
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
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// Counts posts that watchers got from the store without a live message.
    pub(crate) fn count_recovered(&self, posts: usize) {
        self.metrics.live_entries_recovered.inc_by(posts as u64);
    }

    /// A page of up to `size` posts less than `before`. Reads on past what is left out, but not without end.
    pub(crate) async fn page(
        &self,
        user: UserKey,
        mut before: Option<PostId>,
        size: usize,
    ) -> Result<Page, Status> {
        let muted = self.muted(user).await?;
        let mut posts = Vec::with_capacity(size);
        let mut bytes = 0;
        for read in 0..READS_MAX {
            let left = size - posts.len();
            let limit = if read == 0 { left } else { left.max(READ_AGAIN_MIN) };
            // One more than looked at tells whether there are more.
            let mut ids = self.newest(user, before, limit + 1).await?;
            let mut more = ids.len() > limit;
            ids.truncate(limit);
            let mut full = false;
            for (id, post) in ids.iter().zip(self.visible(&ids, &muted).await?) {
                bytes += post.as_ref().map_or(0, weight);
                full = posts.len() == size || bytes > ANSWER_BYTES_MAX;
                if full {
                    more = true;
                    break;
                }
                before = Some(*id);
                posts.extend(post);
            }
            if !more {
                return Ok(Page { posts, next: None });
            }
            if full || posts.len() == size {
                break;
            }
        }
        Ok(Page { posts, next: before })
    }
}

fn is_hidden(post: &Post, muted: &BTreeSet<UserKey>) -> bool {
    post.deleted_at.is_some() || muted.contains(&post.author)
}

/// About what a post takes, bytes.
pub(crate) fn weight(post: &Post) -> usize {
    let urls: usize = post.links.iter().chain(&post.media_urls).map(String::len).sum();
    POST_BYTES + post.text.len() + urls
}
