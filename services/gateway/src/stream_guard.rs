//! Guards that new posts don't reuse the ids of archived ones.
//!
//! A post's id is its sequence in POSTS, so POSTS must go on above the newest archived post. The gateway compares both
//! at its start, and refuses to start on a stream that ends before. While the store is away, it compares later. Until
//! then it accepts posts if POSTS has messages: it is the stream that it was. An empty one may have been made anew
//! beside an old store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use herald_mesh::{Mesh, streams};
use herald_posts::StreamError;
use herald_rpc::status;
use herald_store::Posts;
use tonic::Status;

/// Delay before the next comparison while the store is away.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Whether posts are refused because POSTS may not belong to the store. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct StreamGuard(Arc<AtomicBool>);

/// A comparison that waits for the store.
pub(crate) struct PendingCheck {
    mesh: Mesh,
    posts: Arc<dyn Posts>,
    guard: StreamGuard,
}

impl StreamGuard {
    /// Compares POSTS with the store. Returns the comparison that is left to do if the store is away.
    ///
    /// # Errors
    /// A stream that belongs to another store, and errors of the broker.
    pub(crate) async fn check(
        mesh: &Mesh,
        posts: &Arc<dyn Posts>,
    ) -> Result<(Self, Option<PendingCheck>), StreamError> {
        let guard = Self::default();
        match herald_posts::check_stream_matches_store(mesh, &**posts).await {
            Ok(()) => return Ok((guard, None)),
            Err(StreamError::Store(error)) if error.is_away() => {
                tracing::warn!(%error, "the store is away: POSTS is compared with the newest archived post later");
            }
            Err(error) => return Err(error),
        }
        let is_empty = mesh.last_sequence(streams::POSTS).await? == 0;
        guard.0.store(is_empty, Ordering::Relaxed);
        let pending = PendingCheck {
            mesh: mesh.clone(),
            posts: posts.clone(),
            guard: guard.clone(),
        };
        Ok((guard, Some(pending)))
    }

    /// Whether posts are accepted.
    ///
    /// # Errors
    /// The reason why they are refused.
    pub(crate) fn accepts_posts(&self) -> Result<(), &'static str> {
        if self.0.load(Ordering::Relaxed) {
            Err(
                "stream POSTS is empty, and the store can't be reached to tell whether it has posts whose ids would be used \
                 again",
            )
        } else {
            Ok(())
        }
    }

    /// Refuses a post.
    ///
    /// # Errors
    /// UNAVAILABLE while posts are refused.
    pub(crate) fn admit(&self) -> Result<(), Status> {
        self.accepts_posts()
            .map_err(|reason| status::unavailable("STORE_UNAVAILABLE", format!("{reason}; retry later")))
    }
}

impl PendingCheck {
    /// Compares once the store is back.
    ///
    /// # Errors
    /// As [`StreamGuard::check`].
    pub(crate) async fn run(self) -> Result<(), StreamError> {
        loop {
            tokio::time::sleep(RETRY_DELAY).await;
            match herald_posts::check_stream_matches_store(&self.mesh, &*self.posts).await {
                Ok(()) => {
                    self.guard.0.store(false, Ordering::Relaxed);
                    tracing::info!("POSTS belongs to the store");
                    return Ok(());
                }
                Err(StreamError::Store(error)) if error.is_away() => {}
                Err(StreamError::Mesh(error)) => tracing::debug!(%error, "can't read the end of POSTS"),
                Err(error) => return Err(error),
            }
        }
    }
}
