//! The archive watermark: up to which moment the store contains every request of POSTS.
//!
//! A repeated request is detected by the broker, within its dedupe window, or by the store, once the archive consumer
//! has written the first request. If the archive consumer lags by more than the dedupe window, neither detects it: the
//! request becomes a second post, or a second deletion that is counted twice. So the gateway periodically reads the end
//! of POSTS, archives the messages that the store lacks, and accepts a request only while the last reading is younger
//! than the window.
//!
//! The ack floor of the consumer is not sufficient: messages that a crashed process had in flight stay unacknowledged
//! for the ack wait, although the store may contain them. So [`WatermarkReader`] looks up every message above the ack
//! floor in the store.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use herald_mesh::{Mesh, RawMessage, Subject, Topology, consumers, streams};
use herald_model::{Post, PostId};
use herald_posts::ReadError;
use herald_rpc::status;
use herald_runtime::telemetry::error_chain;
use herald_store::{Archived, Posts, Users};
use tokio::{sync::watch, time::Instant};
use tonic::Status;

/// Messages that are looked up in one batch.
const LOOKUP_BATCH: usize = 256;
/// Maximum time that a request waits for a fresh reading before it is refused.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Delay before the retry of a failed reading.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// Maximum time for which a server that was partitioned from its cluster still acts as leader and reports a stale end
/// of POSTS. The longest observed time is 14 s.
const STALE_MAX: Duration = Duration::from_secs(30);

/// A reading of the watermark that was fresh when it was taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WatermarkReading(Instant);

/// The latest reading of the watermark. Clones share it.
#[derive(Clone)]
pub(crate) struct ArchiveWatermark {
    read_at: watch::Receiver<Option<Instant>>,
    age_max: Duration,
    store_away: Arc<AtomicBool>,
}

/// Reads the watermark periodically and archives the messages that the store lacks.
pub(crate) struct WatermarkReader {
    mesh: Mesh,
    users: Arc<dyn Users>,
    posts: Arc<dyn Posts>,
    read_at: watch::Sender<Option<Instant>>,
    age_max: Duration,
    store_away: Arc<AtomicBool>,
}

impl ArchiveWatermark {
    /// Waits up to `WAIT_MAX` for a fresh reading. Then the store contains every request that the broker may no longer
    /// detect as a duplicate.
    ///
    /// # Errors
    /// UNAVAILABLE, reason `ARCHIVE_BEHIND`, when there is no fresh reading in time.
    pub(crate) async fn wait_until_fresh(&self) -> Result<WatermarkReading, Status> {
        let mut read_at = self.read_at.clone();
        let fresh = read_at.wait_for(|at| at.is_some_and(|at| at.elapsed() < self.age_max));
        match tokio::time::timeout(WAIT_MAX, fresh).await {
            Ok(Ok(at)) => at.map(WatermarkReading).ok_or_else(archive_behind),
            Ok(Err(_)) | Err(_) => Err(archive_behind()),
        }
    }

    /// Whether the last reading failed because the store can't be reached or takes no writes.
    pub(crate) fn is_store_away(&self) -> bool {
        self.store_away.load(Ordering::Relaxed)
    }

    /// Notes that the store can't be reached, until the next reading.
    pub(crate) fn note_store_away(&self) {
        self.store_away.store(true, Ordering::Relaxed);
    }

    /// Maximum age of a fresh reading.
    pub(crate) fn age_max(&self) -> Duration {
        self.age_max
    }

    /// Whether the latest reading is fresh.
    pub(crate) fn is_fresh(&self) -> bool {
        let read_at = *self.read_at.borrow();
        read_at.is_some_and(|at| at.elapsed() < self.age_max)
    }

    /// Refuses a reading that has expired since it was taken, for example in a process that was suspended.
    ///
    /// # Errors
    /// UNAVAILABLE, reason `ARCHIVE_BEHIND`.
    pub(crate) fn check_fresh(&self, reading: WatermarkReading) -> Result<(), Status> {
        if reading.0.elapsed() < self.age_max {
            Ok(())
        } else {
            Err(archive_behind())
        }
    }
}

impl WatermarkReader {
    pub(crate) fn new(mesh: Mesh, users: Arc<dyn Users>, posts: Arc<dyn Posts>, topology: &Topology) -> Self {
        let window = topology
            .stream(streams::POSTS)
            .map_or(Duration::ZERO, |stream| stream.dedupe_window);
        // A request that relies on a reading must reach the broker while the broker still has the message ids stored
        // after that reading. If the window is too short for that, a quarter of the window leaves a small gap.
        let age_max = window
            .saturating_sub(mesh.publish_time_max() + STALE_MAX)
            .max(window / 4);
        Self {
            mesh,
            users,
            posts,
            read_at: watch::Sender::new(None),
            age_max,
            store_away: Arc::default(),
        }
    }

    pub(crate) fn archive_watermark(&self) -> ArchiveWatermark {
        ArchiveWatermark {
            read_at: self.read_at.subscribe(),
            age_max: self.age_max,
            store_away: self.store_away.clone(),
        }
    }

    /// Reads the watermark four times in each `age_max`. Never returns.
    pub(crate) async fn run(self) {
        loop {
            let at = Instant::now();
            let caught_up = self.catch_up().await;
            let is_away = matches!(&caught_up, Err(ReadError::Store(error)) if error.is_away());
            self.store_away.store(is_away, Ordering::Relaxed);
            let pause = match caught_up {
                Ok(()) => {
                    self.read_at.send_replace(Some(at));
                    self.age_max / 4
                }
                Err(error) => {
                    tracing::warn!(
                        error = error_chain(&error),
                        "can't read how far the archive is behind POSTS; retrying"
                    );
                    RETRY_DELAY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Archives every post and deletion of POSTS that the store lacks, up to the end of POSTS at the time of the call.
    async fn catch_up(&self) -> Result<(), ReadError> {
        let last = self.mesh.last_sequence(streams::POSTS).await?;
        let floor = self.mesh.ack_floor(streams::POSTS, consumers::ARCHIVE).await?;
        if floor >= last {
            return Ok(());
        }
        let messages = self.mesh.scan(streams::POSTS, None, floor + 1, last);
        let mut batches = pin!(messages.chunks(LOOKUP_BATCH));
        while let Some(batch) = batches.next().await {
            let batch: Vec<RawMessage> = batch.into_iter().collect::<Result<_, _>>()?;
            // The archive consumer terminates malformed messages with a reason.
            let entries: Vec<Archived> = batch.into_iter().filter_map(decode_entry).collect();
            let ids: Vec<PostId> = entries.iter().map(post_id).collect();
            let stored = self.posts.get(&ids).await?;
            let mut missing: Vec<Archived> = entries
                .into_iter()
                .zip(stored)
                .filter(|(entry, post)| !is_stored(entry, post.as_ref()))
                .map(|(entry, _)| entry)
                .collect();
            herald_posts::resolve_authors(&*self.users, &mut missing).await?;
            self.posts.archive(&missing).await?;
        }
        Ok(())
    }
}

/// Decodes a message of POSTS; `None` if it is malformed.
fn decode_entry(message: RawMessage) -> Option<Archived> {
    herald_posts::entry(
        Subject::parse(&message.subject)?,
        message.sequence,
        message.payload,
    )
    .ok()
}

/// The post that an entry creates or deletes.
fn post_id(entry: &Archived) -> PostId {
    match entry {
        Archived::Created(post) => post.id,
        Archived::Deleted { post, .. } => *post,
    }
}

/// Whether the stored post already reflects the entry.
fn is_stored(entry: &Archived, post: Option<&Post>) -> bool {
    match entry {
        Archived::Created(_) => post.is_some(),
        Archived::Deleted { .. } => post.is_some_and(|post| post.deleted_at.is_some()),
    }
}

fn archive_behind() -> Status {
    status::unavailable(
        "ARCHIVE_BEHIND",
        "the archive lags behind POSTS, so a duplicate of this request can't be excluded; retry later",
    )
}
