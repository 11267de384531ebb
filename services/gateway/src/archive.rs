//! The archive consumer: posts and deletions from POSTS into the store, many at a time.

use std::sync::Arc;

use async_trait::async_trait;
use herald_mesh::{Delivery, Handler, Settle, Subject};
use herald_model::{PostId, time::Micros};
use herald_proto::mesh_v1;
use herald_runtime::status;
use herald_store::{Archived, Posts};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Metrics, wire};

/// What a message waits for: its batch is durable, or why not.
type Outcome = Result<(), Arc<herald_store::Error>>;

struct Job {
    entry: Archived,
    done: oneshot::Sender<Outcome>,
}

/// Handles messages of POSTS. Each one waits for its batch, so a message is acknowledged after the commit; while one
/// batch is written the next one gathers.
pub(crate) struct Archive {
    jobs: mpsc::Sender<Job>,
    _writer: DropGuard,
}

impl Archive {
    /// Starts the writer; it ends with the last handler.
    pub(crate) fn new(posts: Arc<dyn Posts>, metrics: Metrics, batch_max: usize) -> Self {
        let (jobs, queue) = mpsc::channel(batch_max);
        let stop = CancellationToken::new();
        let writer = write(posts, metrics, queue, batch_max);
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(writer).await });
        Self {
            jobs,
            _writer: stop.drop_guard(),
        }
    }

    async fn archive(&self, entry: Archived) -> Settle {
        let retry = |reason: String| Settle::Retry { after: None, reason };
        let (done, outcome) = oneshot::channel();
        if self.jobs.send(Job { entry, done }).await.is_err() {
            return retry("the archive's writer has ended".into());
        }
        match outcome.await {
            Ok(Ok(())) => Settle::Ack,
            // Whatever the store says, an accepted post must not be lost: the message comes again.
            Ok(Err(error)) => retry(status::chain(&*error)),
            Err(_) => retry("the archive's writer has ended".into()),
        }
    }
}

#[async_trait]
impl Handler for Archive {
    async fn handle(&self, delivery: &Delivery) -> Settle {
        match read(delivery) {
            Ok(entry) => self.archive(entry).await,
            Err(settle) => settle,
        }
    }
}

fn read(delivery: &Delivery) -> Result<Archived, Settle> {
    let term = |reason: String| Settle::Term { reason };
    match delivery.subject {
        Subject::PostCreated(_) => {
            let created: mesh_v1::PostCreated = delivery.decode()?;
            wire::post_from_mesh(PostId(delivery.sequence), created)
                .map(Archived::Created)
                .map_err(term)
        }
        Subject::PostDeleted(_) => {
            let deleted: mesh_v1::PostDeleted = delivery.decode()?;
            if deleted.post_id == 0 || deleted.post_id >= delivery.sequence {
                return Err(term(format!(
                    "post {} can't have been deleted here",
                    deleted.post_id
                )));
            }
            Ok(Archived::Deleted {
                post: PostId(deleted.post_id),
                at: Micros(deleted.deleted_at_us),
            })
        }
        other => Err(term(format!("{other} is no subject of posts"))),
    }
}

async fn write(posts: Arc<dyn Posts>, metrics: Metrics, mut queue: mpsc::Receiver<Job>, batch_max: usize) {
    let mut batch = Vec::with_capacity(batch_max);
    while queue.recv_many(&mut batch, batch_max).await > 0 {
        let (entries, waiting): (Vec<_>, Vec<_>) = batch.drain(..).map(|job| (job.entry, job.done)).unzip();
        let outcome = posts.archive(&entries).await.map_err(Arc::new);
        match &outcome {
            Ok(()) => {
                metrics.archive_batches.inc();
                metrics.archived.inc_by(entries.len() as u64);
            }
            Err(error) => {
                tracing::error!(
                    posts = entries.len(),
                    error = status::chain(&**error),
                    "posts not archived, will retry"
                );
            }
        }
        for done in waiting {
            // A handler that is gone needs no answer: its message comes again and changes nothing.
            let _ = done.send(outcome.clone());
        }
    }
}
