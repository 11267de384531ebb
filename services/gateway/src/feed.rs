//! Reads timelines without the posts that are hidden from the user.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use herald_model::{Post, PostId, UserKey};
use herald_posts::PostReader;
use herald_proto::v1::RemovalReason;
use herald_rpc::status;
use herald_store::{Preferences, TimelinePage, Timelines};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::{Metrics, error::read_error_to_status};

/// Requests for live posts that wait. A watch waits while there are more.
const LIVE_READS_MAX: usize = 1_024;
/// Estimated size of a post without its text and URLs, bytes.
const POST_OVERHEAD_BYTES: usize = 512;
/// Maximum total size of the posts in one response, bytes. gRPC clients refuse responses over 4 MiB by default. A post
/// has at most 106 KB, so only pages of very long posts end early.
pub(crate) const RESPONSE_BYTES_MAX: usize = 3 << 20;
/// Maximum number of reads for one page. After the last read the page is returned even if it is not full.
const READS_MAX: usize = 5;
/// Minimum number of posts in each further read of a page, after the first read had hidden posts.
const REREAD_MIN: usize = 200;

/// A request for a live post.
struct LiveRead {
    id: PostId,
    post: oneshot::Sender<Result<Option<Arc<Post>>, Status>>,
}

/// Reads timelines and skips deleted posts and posts of muted authors. Clones share the reader of live posts.
#[derive(Clone)]
pub(crate) struct Feed {
    timelines: Arc<dyn Timelines>,
    preferences: Arc<dyn Preferences>,
    reader: PostReader,
    metrics: Metrics,
    live_reads: mpsc::Sender<LiveRead>,
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
    /// Must be called inside of the runtime that uses the feed.
    pub(crate) fn new(
        timelines: Arc<dyn Timelines>,
        preferences: Arc<dyn Preferences>,
        reader: PostReader,
        metrics: Metrics,
    ) -> Self {
        let (live_reads, requests) = mpsc::channel(LIVE_READS_MAX);
        tokio::spawn(read_live(reader.clone(), requests));
        Self {
            timelines,
            preferences,
            reader,
            metrics,
            live_reads,
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

    /// Reads one post for a watcher; `None` for a hidden or missing post. Watchers that wait at the same time share one
    /// read. It begins after all of them have asked, so a deletion that was answered before is seen.
    pub(crate) async fn read_visible_live(
        &self,
        id: PostId,
        muted: &BTreeSet<UserKey>,
    ) -> Result<Option<Arc<Post>>, Status> {
        let stopped = || status::unavailable("SHUTTING_DOWN", "the gateway is shutting down");
        let (post, outcome) = oneshot::channel();
        let request = LiveRead { id, post };
        self.live_reads.send(request).await.map_err(|_| stopped())?;
        let post = outcome.await.map_err(|_| stopped())??;
        if post.is_none() {
            self.metrics.posts_missing.inc();
        }
        Ok(post.filter(|post| !is_hidden(post, muted)))
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

/// Reads live posts, all that wait at once, until no feed is left.
async fn read_live(reader: PostReader, mut requests: mpsc::Receiver<LiveRead>) {
    let mut waiting = Vec::new();
    while requests.recv_many(&mut waiting, LIVE_READS_MAX).await > 0 {
        let ids: BTreeSet<PostId> = waiting.iter().map(|read| read.id).collect();
        let ids: Vec<PostId> = ids.into_iter().collect();
        let read = reader.read(&ids).await.map_err(|e| read_error_to_status(&e));
        let read = read.map(|posts| {
            let posts = posts.into_iter().map(|post| post.map(Arc::new));
            ids.iter().copied().zip(posts).collect::<HashMap<_, _>>()
        });
        for LiveRead { id, post } in waiting.drain(..) {
            let found = match &read {
                Ok(posts) => Ok(posts.get(&id).cloned().flatten()),
                Err(status) => Err(status.clone()),
            };
            // The watch may have ended.
            let _ = post.send(found);
        }
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
