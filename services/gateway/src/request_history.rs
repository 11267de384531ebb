//! The requests that POSTS has, for the time when the store can't be asked.
//!
//! A repeated request is detected by the broker, within its dedupe window, or by the store. While the store is away, a
//! request id that a caller has chosen could be one of a post that is older than the window. But each message of POSTS
//! has the author and the request id of its post, so the gateway reads those of the last day from there. It does so
//! only while they are needed: a day of posts is some 100 MB to read.
//!
//! *Invariant:* a request that a fresh reading does not have was not accepted before the reading, and the broker detects
//! one that was accepted since.

use std::{collections::HashMap, hash::BuildHasher as _, pin::pin, sync::Arc, time::Duration};

use futures::TryStreamExt as _;
use herald_mesh::{Mesh, RawMessage, streams};
use herald_model::{PostId, UserId, time::Timestamp};
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
    requests: Mutex<Requests>,
    read_at: watch::Sender<Option<Instant>>,
    wanted: Notify,
}

/// The requests that were read, and where the reading continues.
#[derive(Default)]
struct Requests {
    /// Hash of author and request id → the post. A collision makes a request wait for the store, no more.
    posts: HashMap<u64, u64>,
    /// Sequence from which the reading continues.
    next: Option<u64>,
    /// Sequence and time of the last message of POSTS. A stream that was made again has another one there.
    newest: Option<(u64, Timestamp)>,
}

impl Requests {
    /// Adds the request of a post, at most `max` requests. The reading continues after an added post.
    fn add(&mut self, sequence: u64, hash: u64, max: usize) -> Result<(), String> {
        if self.posts.len() >= max && !self.posts.contains_key(&hash) {
            return Err(format!(
                "POSTS has more than {max} posts within the retention of request ids"
            ));
        }
        self.posts.entry(hash).or_insert(sequence);
        self.next = Some(sequence + 1);
        Ok(())
    }
}

impl RequestHistory {
    /// A history that is not read yet. A reading is fresh for `age_max`, as one of the archive watermark is.
    pub(crate) fn new(mesh: Mesh, keep: Duration, age_max: Duration) -> Self {
        Self(Arc::new(Inner {
            mesh,
            keep,
            age_max,
            hasher: std::hash::RandomState::new(),
            requests: Mutex::default(),
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
        author: &UserId,
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
        let hash = inner.hash(author.as_str(), request_id);
        let post = inner.requests.lock().posts.get(&hash).copied();
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
            let mut used_at = Instant::now();
            while used_at.elapsed() < UNUSED_MAX {
                let at = Instant::now();
                let pause = match inner.catch_up().await {
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
            *inner.requests.lock() = Requests::default();
        }
    }
}

impl Inner {
    fn is_fresh(&self, read_at: Option<Instant>) -> bool {
        read_at.is_some_and(|at| at.elapsed() < self.age_max)
    }

    fn hash(&self, author: &str, request_id: &str) -> u64 {
        self.hasher.hash_one((author, request_id))
    }

    /// Adds the posts that came since the last call, up to the end of POSTS.
    async fn catch_up(&self) -> Result<(), String> {
        let last = self.mesh.last_sequence(streams::POSTS).await.map_err(text)?;
        let from = if let Some(next) = self.continue_at(last).await? {
            next
        } else {
            self.read_at.send_replace(None);
            *self.requests.lock() = Requests::default();
            self.first().await?
        };
        let mut messages = pin!(self.mesh.scan(streams::POSTS, Some(CREATED), from, last));
        while let Some(message) = messages.try_next().await.map_err(text)? {
            if let Some(hash) = self.hash_of(&message) {
                self.requests.lock().add(message.sequence, hash, REQUESTS_MAX)?;
            }
        }
        let newest = self.published_at(last).await?;
        let mut requests = self.requests.lock();
        requests.next = Some(last + 1);
        requests.newest = newest.map(|at| (last, at));
        Ok(())
    }

    /// Where the reading continues in a stream that ends at `last`; `None` if it begins anew, because POSTS was made
    /// again.
    async fn continue_at(&self, last: u64) -> Result<Option<u64>, String> {
        let (next, newest) = {
            let requests = self.requests.lock();
            (requests.next, requests.newest)
        };
        let is_same = match (next, newest) {
            (Some(1), _) => true,
            (Some(next), Some((sequence, at))) if next <= last + 1 => {
                self.published_at(sequence).await? == Some(at)
            }
            _ => false,
        };
        Ok(next.filter(|_| is_same))
    }

    /// The first message within the retention of request ids. An error if there can have been earlier ones within it: in
    /// a stream that was made again or purged, or that retains posts for a shorter time.
    async fn first(&self) -> Result<u64, String> {
        let since = Timestamp::now().minus(self.keep + CLOCK_DIFFERENCE_MAX);
        let first = self
            .mesh
            .sequence_since(streams::POSTS, since)
            .await
            .map_err(text)?;
        if first > 1 && self.published_at(first - 1).await?.is_none() {
            return Err("POSTS does not have all posts within the retention of request ids".into());
        }
        Ok(first)
    }

    async fn published_at(&self, sequence: u64) -> Result<Option<Timestamp>, String> {
        let message = self.mesh.message(streams::POSTS, sequence).await.map_err(text)?;
        Ok(message.map(|message| message.published_at))
    }

    /// The hash of a post's request; `None` for a message that is no post, which the archive terminates.
    fn hash_of(&self, message: &RawMessage) -> Option<u64> {
        let post = message.decode::<PostCreated>().ok()?;
        Some(self.hash(&post.author_id, &post.request_id))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn text(error: herald_mesh::Error) -> String {
    error_chain(&error)
}

/// UNAVAILABLE: only the store can tell whether a request was accepted.
pub(crate) fn store_away() -> Status {
    status::unavailable(
        "STORE_UNAVAILABLE",
        "the store is not available, so a duplicate of this request can't be excluded yet; retry later",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_has_no_room_is_read_again() {
        let mut requests = Requests::default();
        requests.add(3, 30, 2).unwrap();
        requests.add(5, 50, 2).unwrap();
        for _ in 0..2 {
            requests.add(7, 70, 2).unwrap_err();
            assert_eq!(requests.next, Some(6));
        }
        requests.add(8, 30, 2).unwrap();
        assert_eq!(requests.posts[&30], 3, "the first post of a request counts");
    }
}
