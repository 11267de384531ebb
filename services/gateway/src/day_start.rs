//! The id at which the posts of the last 24 hours begin, for all authors.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use herald_model::{PostId, time::Timestamp};
use herald_store::Posts;
use tokio::{sync::watch, time::Instant};

/// Finds a post of some time ago. To find it takes some 40 reads of the archive, so it is done in the background.
#[derive(Clone)]
pub(crate) struct DayStart(Arc<Inner>);

struct Inner {
    posts: Arc<dyn Posts>,
    /// How long ago.
    ago: Duration,
    /// Maximum age of what was found, before it is found again.
    keep: Duration,
    found: watch::Sender<Option<(PostId, Instant)>>,
    is_finding: AtomicBool,
}

impl DayStart {
    pub(crate) fn new(posts: Arc<dyn Posts>, ago: Duration, keep: Duration) -> Self {
        Self(Arc::new(Inner {
            posts,
            ago,
            keep,
            found: watch::Sender::new(None),
            is_finding: AtomicBool::new(false),
        }))
    }

    /// A post that is no newer than the first one since then. It can be older by the age of what was found. Waits only
    /// until it has been found once. Cancel safe.
    pub(crate) async fn get(&self) -> PostId {
        let mut found = self.0.found.subscribe();
        let present = *found.borrow_and_update();
        if present.is_none_or(|(_, at)| at.elapsed() >= self.0.keep) {
            self.find();
        }
        match found.wait_for(Option::is_some).await.map(|found| *found) {
            Ok(Some((post, _))) => post,
            // Every post is counted: `self` has the sender, so this does not happen.
            Ok(None) | Err(_) => PostId(0),
        }
    }

    /// Finds it, unless a task is at it.
    fn find(&self) {
        if self.0.is_finding.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move {
            let at = Instant::now();
            match inner.posts.first_since(Timestamp::now().minus(inner.ago)).await {
                Ok(post) => {
                    inner.found.send_replace(Some((post, at)));
                }
                Err(error) => tracing::debug!(%error, "the first post of the last day not found"),
            }
            inner.is_finding.store(false, Ordering::Release);
        });
    }
}
