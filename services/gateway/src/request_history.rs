//! The requests that POSTS has, for the time when the store can't be asked.
//!
//! A repeated request is detected by the broker, within its dedupe window, or by the store. While the store is away, a
//! request id that a caller has chosen could be one of a post that is older than the window. But POSTS names the request
//! of each post in its message id, so the gateway reads the ids of the last day from there. It does so only while they
//! are needed: a day of posts is some 100 MB to read.
//!
//! *Invariant:* a request that a fresh reading does not have was not accepted before the reading, and the broker detects
//! one that was accepted since.

use std::{collections::HashMap, hash::BuildHasher as _, pin::pin, sync::Arc, time::Duration};

use futures::TryStreamExt as _;
use herald_mesh::{Mesh, RawMessage, streams};
use herald_model::{PostId, UserKey, time::Timestamp};
use herald_proto::mesh_v1::PostCreated;
use herald_rpc::status;
use herald_runtime::telemetry::error_chain;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tonic::Status;

/// Subjects of accepted posts.
const CREATED: &str = "post.v1.created.*";
/// Added to the retention of request ids: the clocks of the gateway and of the broker can differ.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_mins(5);
/// Maximum number of requests in memory, some 100 MB. With more posts in a day, requests wait for the store.
const REQUESTS_MAX: usize = 4_000_000;
/// Maximum time that a request waits until the history is read.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Delay before the retry of a failed reading.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Time without a use after which the history is forgotten.
const UNUSED_MAX: Duration = Duration::from_mins(10);

/// A reading that was fresh when it was taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HistoryReading(Instant);

/// The history. Clones share it.
#[derive(Clone)]
pub(crate) struct RequestHistory(Arc<Inner>);

struct Inner {
    mesh: Mesh,
    /// Retention of request ids.
    keep: Duration,
    /// Maximum age of a fresh reading.
    age_max: Duration,
    hasher: std::hash::RandomState,
    /// Hash of author and request id → the post. A collision makes a request wait for the store, no more.
    posts: Mutex<HashMap<u64, u64>>,
    read_at: watch::Sender<Option<Instant>>,
    wanted: Notify,
}

impl RequestHistory {
    /// A history that is not read yet. A reading is fresh for `age_max`, as one of the archive watermark is.
    pub(crate) fn new(mesh: Mesh, keep: Duration, age_max: Duration) -> Self {
        Self(Arc::new(Inner {
            mesh,
            keep,
            age_max,
            hasher: std::hash::RandomState::new(),
            posts: Mutex::default(),
            read_at: watch::Sender::new(None),
            wanted: Notify::new(),
        }))
    }

    /// Makes [`run`](Self::run) read the history, and keep it up to date.
    pub(crate) fn want(&self) {
        self.0.wanted.notify_one();
    }

    /// Whether the history can be used now.
    pub(crate) fn is_fresh(&self) -> bool {
        self.0.is_fresh(*self.0.read_at.borrow())
    }

    /// Finds the post of a request; `None` if no post of the history has it. Waits up to `WAIT_MAX` for a fresh reading.
    ///
    /// # Errors
    /// UNAVAILABLE when there is no fresh reading in time.
    pub(crate) async fn find(
        &self,
        author: UserKey,
        request_id: &str,
    ) -> Result<(Option<PostId>, HistoryReading), Status> {
        let inner = &self.0;
        self.want();
        let mut read_at = inner.read_at.subscribe();
        let fresh = read_at.wait_for(|at| inner.is_fresh(*at));
        let at = match tokio::time::timeout(WAIT_MAX, fresh).await {
            Ok(Ok(at)) => at.ok_or_else(store_away)?,
            Ok(Err(_)) | Err(_) => return Err(store_away()),
        };
        let hash = inner.hash(&format!("{author}/{request_id}"));
        let post = inner.posts.lock().get(&hash).copied();
        Ok((post.map(PostId), HistoryReading(at)))
    }

    /// Refuses a reading that has expired since it was taken, for example in a process that was suspended.
    ///
    /// # Errors
    /// UNAVAILABLE.
    pub(crate) fn check_fresh(&self, reading: HistoryReading) -> Result<(), Status> {
        if reading.0.elapsed() < self.0.age_max {
            Ok(())
        } else {
            Err(store_away())
        }
    }

    /// Reads the history while it is wanted. Never returns.
    pub(crate) async fn run(self) {
        let inner = &*self.0;
        loop {
            inner.wanted.notified().await;
            tracing::info!("the store is away; reading the request ids of POSTS");
            let mut next = None;
            let mut used_at = Instant::now();
            while used_at.elapsed() < UNUSED_MAX {
                let at = Instant::now();
                let pause = match inner.catch_up(&mut next).await {
                    Ok(()) => {
                        inner.read_at.send_replace(Some(at));
                        inner.age_max / 4
                    }
                    Err(error) => {
                        tracing::warn!(error, "can't read the request ids of POSTS; retrying");
                        RETRY_DELAY
                    }
                };
                let until = Instant::now() + pause;
                loop {
                    tokio::select! {
                        () = sleep_until(until) => break,
                        () = inner.wanted.notified() => used_at = Instant::now(),
                    }
                }
            }
            inner.read_at.send_replace(None);
            *inner.posts.lock() = HashMap::new();
        }
    }
}

impl Inner {
    fn is_fresh(&self, read_at: Option<Instant>) -> bool {
        read_at.is_some_and(|at| at.elapsed() < self.age_max)
    }

    fn hash(&self, id: &str) -> u64 {
        self.hasher.hash_one(id)
    }

    /// Adds the posts from sequence `next` to the end of POSTS.
    async fn catch_up(&self, next: &mut Option<u64>) -> Result<(), String> {
        let text = |error: herald_mesh::Error| error_chain(&error).clone();
        let last = self.mesh.last_sequence(streams::POSTS).await.map_err(text)?;
        let mut from = match *next {
            // POSTS was made again when it ends before what was read.
            Some(next) if next <= last + 1 => next,
            _ => {
                self.read_at.send_replace(None);
                self.posts.lock().clear();
                let since = Timestamp::now().minus(self.keep + CLOCK_DIFFERENCE_MAX);
                let first = self.mesh.sequence_since(streams::POSTS, since).await;
                first.map_err(text)?
            }
        };
        let mut messages = pin!(self.mesh.scan(streams::POSTS, Some(CREATED), from, last));
        while let Some(message) = messages.try_next().await.map_err(text)? {
            from = message.sequence + 1;
            *next = Some(from);
            self.add(&message)?;
        }
        *next = Some(last + 1);
        Ok(())
    }

    fn add(&self, message: &RawMessage) -> Result<(), String> {
        let hash = match message.id() {
            Some(id) => self.hash(id),
            None => match message.decode::<PostCreated>() {
                Ok(post) => self.hash(&format!("{}/{}", UserKey(post.author_key), post.request_id)),
                // No post: the archive terminates it.
                Err(_) => return Ok(()),
            },
        };
        let mut posts = self.posts.lock();
        if posts.len() >= REQUESTS_MAX {
            return Err(format!(
                "POSTS has more than {REQUESTS_MAX} posts within the retention of request ids"
            ));
        }
        posts.entry(hash).or_insert(message.sequence);
        Ok(())
    }
}

fn store_away() -> Status {
    status::unavailable(
        "STORE_UNAVAILABLE",
        "the store is not available, so a duplicate of this request can't be excluded yet; retry later",
    )
}
