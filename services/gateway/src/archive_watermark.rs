//! How far the store knows the requests that made and deleted posts.
//!
//! A request id that is sent again is found by the broker, which forgets it after its dedupe window, or by the store, which
//! the archive consumer fills: but a consumer that is behind by more than the window would leave a gap between the two, in
//! which the same request would be a second post, and the same deletion a second one that is counted twice. So the gateway looks again and again how far the store has come, brings
//! over itself what is missing, and accepts a request only while its last look is younger than the window.
//!
//! The consumer's own word is not enough: what a process that died had in hand is unacknowledged for as long as the ack wait,
//! though it is in the store. So the posts are looked up, not the acknowledgements.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::StreamExt as _;
use herald_mesh::{Mesh, RawMessage, Subject, Topology, consumers, streams};
use herald_model::{Post, PostId};
use herald_posts::ReadError;
use herald_rpc::status;
use herald_runtime::telemetry::error_chain;
use herald_store::{Archived, Posts};
use tokio::{sync::watch, time::Instant};
use tonic::Status;

/// Posts that are looked up together.
const LOOKUP_MAX: usize = 256;
/// How long a request waits for a look before it is refused.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// After a look that failed.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// A server that was cut off from its cluster may take itself for the leader for so long, and tell of an old end of the
/// stream: 14 s were seen.
const STALE_MAX: Duration = Duration::from_secs(30);

/// A look that is young enough was at this moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WatermarkReading(Instant);

/// Tells how old the last look is. Cloning shares it.
#[derive(Clone)]
pub(crate) struct ArchiveWatermark {
    read_at: watch::Receiver<Option<Instant>>,
    age_max: Duration,
}

/// Looks, and brings over what is missing.
pub(crate) struct WatermarkReader {
    mesh: Mesh,
    posts: Arc<dyn Posts>,
    read_at: watch::Sender<Option<Instant>>,
    age_max: Duration,
}

impl ArchiveWatermark {
    /// Waits until every post stored before the dedupe window's last part can be found by its request.
    pub(crate) async fn wait_until_fresh(&self) -> Result<WatermarkReading, Status> {
        let mut read_at = self.read_at.clone();
        let young = read_at.wait_for(|at| at.is_some_and(|at| at.elapsed() < self.age_max));
        match tokio::time::timeout(WAIT_MAX, young).await {
            Ok(Ok(at)) => at.map(WatermarkReading).ok_or_else(behind),
            Ok(Err(_)) | Err(_) => Err(behind()),
        }
    }

    /// Refuses when the look has become too old meanwhile, as in a process that was stopped.
    pub(crate) fn check_fresh(&self, look: WatermarkReading) -> Result<(), Status> {
        if look.0.elapsed() < self.age_max {
            Ok(())
        } else {
            Err(behind())
        }
    }
}

impl WatermarkReader {
    pub(crate) fn new(mesh: Mesh, posts: Arc<dyn Posts>, topology: &Topology) -> Self {
        let window = topology
            .stream(streams::POSTS)
            .map_or(Duration::ZERO, |stream| stream.dedupe_window);
        // What is published after a look must arrive while the broker still knows what was stored after it. A window too
        // short for that leaves a gap, but a smaller one.
        let age_max = window
            .saturating_sub(mesh.publish_time_max() + STALE_MAX)
            .max(window / 4);
        Self {
            mesh,
            posts,
            read_at: watch::Sender::new(None),
            age_max,
        }
    }

    pub(crate) fn archive_watermark(&self) -> ArchiveWatermark {
        ArchiveWatermark {
            read_at: self.read_at.subscribe(),
            age_max: self.age_max,
        }
    }

    /// Looks for ever, several times in the longest time that a look is good for.
    pub(crate) async fn run(self) {
        loop {
            let at = Instant::now();
            let pause = match self.advance().await {
                Ok(()) => {
                    self.read_at.send_replace(Some(at));
                    self.age_max / 4
                }
                Err(error) => {
                    tracing::warn!(
                        error = error_chain(&error),
                        "it can't be seen how far the archive is"
                    );
                    RETRY_DELAY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// After this, every post and every deletion that POSTS had before it is in the store.
    async fn advance(&self) -> Result<(), ReadError> {
        let last = self.mesh.last_sequence(streams::POSTS).await?;
        let floor = self.mesh.ack_floor(streams::POSTS, consumers::ARCHIVE).await?;
        if floor >= last {
            return Ok(());
        }
        let messages = self.mesh.scan(streams::POSTS, None, floor + 1, last);
        let mut batches = pin!(messages.chunks(LOOKUP_MAX));
        while let Some(batch) = batches.next().await {
            let batch: Vec<RawMessage> = batch.into_iter().collect::<Result<_, _>>()?;
            // What is neither is terminated by the archive consumer, which says why.
            let told: Vec<Archived> = batch.into_iter().filter_map(entry).collect();
            let ids: Vec<PostId> = told.iter().map(subject).collect();
            let stored = self.posts.get(&ids).await?;
            let missing = told.into_iter().zip(stored);
            let missing = missing.filter(|(told, stored)| !is_in(told, stored.as_ref()));
            let missing: Vec<Archived> = missing.map(|(told, _)| told).collect();
            self.posts.archive(&missing).await?;
        }
        Ok(())
    }
}

/// What a message tells, if it makes sense.
fn entry(message: RawMessage) -> Option<Archived> {
    herald_posts::entry(
        Subject::parse(&message.subject)?,
        message.sequence,
        message.payload,
    )
    .ok()
}

/// The post that it is about.
fn subject(told: &Archived) -> PostId {
    match told {
        Archived::Created(post) => post.id,
        Archived::Deleted { post, .. } => *post,
    }
}

/// Whether the store has it.
fn is_in(told: &Archived, stored: Option<&Post>) -> bool {
    match told {
        Archived::Created(_) => stored.is_some(),
        Archived::Deleted { .. } => stored.is_some_and(|post| post.deleted_at.is_some()),
    }
}

fn behind() -> Status {
    status::unavailable(
        "ARCHIVE_BEHIND",
        "the archive is behind, so it can't be told whether this request was accepted before",
    )
}
