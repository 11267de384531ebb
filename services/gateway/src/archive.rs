//! The archive consumer: posts and deletions from POSTS into the store, many at a time.

use std::sync::Arc;

use async_trait::async_trait;
use herald_failure::{Classified, isolate};
use herald_mesh::{Delivery, Disposition, Handler};
use herald_runtime::telemetry::error_chain;
use herald_store::{Archived, Posts};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::Metrics;

struct Job {
    entry: Archived,
    done: oneshot::Sender<Disposition>,
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

    async fn archive(&self, entry: Archived) -> Disposition {
        let (done, settle) = oneshot::channel();
        let ended = || Disposition::retry("the archive's writer has ended");
        if self.jobs.send(Job { entry, done }).await.is_err() {
            return ended();
        }
        settle.await.unwrap_or_else(|_| ended())
    }
}

#[async_trait]
impl Handler for Archive {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        match herald_posts::entry(delivery.subject, delivery.sequence, delivery.payload.clone()) {
            Ok(entry) => self.archive(entry).await,
            Err(reason) => Disposition::term(reason),
        }
    }
}

async fn write(posts: Arc<dyn Posts>, metrics: Metrics, mut queue: mpsc::Receiver<Job>, batch_max: usize) {
    let mut batch = Vec::with_capacity(batch_max);
    while queue.recv_many(&mut batch, batch_max).await > 0 {
        let (entries, waiting): (Vec<_>, Vec<_>) = batch.drain(..).map(|job| (job.entry, job.done)).unzip();
        let settles = archive(&*posts, &metrics, &entries).await;
        for (done, settle) in waiting.into_iter().zip(settles) {
            // A handler that is gone needs no answer: its message comes again and changes nothing.
            let _ = done.send(settle);
        }
    }
}

/// Writes a batch, and says how to settle each of its messages. One that can't be written because of a permanent failure
/// keeps no other from being written.
async fn archive(posts: &dyn Posts, metrics: &Metrics, entries: &[Archived]) -> Vec<Disposition> {
    let written = isolate(entries.len(), true, |part| posts.archive(&entries[part])).await;
    if let Some(Classified::Transient(error)) = &written.stopped {
        let error = error_chain(error);
        tracing::error!(posts = entries.len(), error, "posts not archived, will retry");
    }
    let open = written.stopped.map_or(Disposition::Ack, Disposition::from);
    let mut settles = vec![open; entries.len()];
    for (part, ()) in written.done {
        metrics.archive_batches.inc();
        metrics.archived.inc_by(part.len() as u64);
        settles[part].fill(Disposition::Ack);
    }
    for (index, reason) in written.failed {
        settles[index] = Disposition::fault(reason);
    }
    settles
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use herald_model::{FollowVersion, Lane, Post, PostId, UserId, UserKey, time::Timestamp};
    use herald_runtime::metrics::Shared;
    use herald_store::{
        Error, ErrorKind, Result,
        embedded::{Config, Embedded},
    };

    use super::*;

    /// Posts of which some can't be written.
    struct Faulty {
        inner: Arc<dyn Posts>,
        /// Post and kind; `None`: a panic.
        faults: Vec<(u64, Option<ErrorKind>)>,
    }

    #[async_trait]
    impl Posts for Faulty {
        async fn archive(&self, entries: &[Archived]) -> Result<()> {
            for (post, kind) in &self.faults {
                if entries
                    .iter()
                    .any(|entry| matches!(entry, Archived::Created(one) if one.id.0 == *post))
                {
                    let kind = kind.expect("on purpose");
                    return Err(Error::new(kind, "ill"));
                }
            }
            self.inner.archive(entries).await
        }

        async fn get(&self, posts: &[PostId]) -> Result<Vec<Option<Post>>> {
            self.inner.get(posts).await
        }

        async fn newest_of(&self, author: UserKey, up_to: PostId, limit: usize) -> Result<Vec<PostId>> {
            self.inner.newest_of(author, up_to, limit).await
        }

        async fn of_request(&self, author: UserKey, request_id: &str) -> Result<Option<PostId>> {
            self.inner.of_request(author, request_id).await
        }

        async fn capacity(&self) -> Result<()> {
            self.inner.capacity().await
        }

        async fn last(&self) -> Result<Option<PostId>> {
            self.inner.last().await
        }
    }

    fn post(id: u64) -> Archived {
        Archived::Created(Post {
            id: PostId(id),
            author: UserKey(1),
            author_id: UserId::new("ann").unwrap(),
            request_id: format!("request {id}"),
            text: "text".into(),
            links: Vec::new(),
            media_urls: Vec::new(),
            lane: Lane::Normal,
            follow_version: FollowVersion(1),
            accepted_at: Timestamp::now(),
            push_ttl: Duration::from_hours(1),
            deleted_at: None,
        })
    }

    #[tokio::test]
    async fn a_post_that_can_not_be_written_keeps_no_other_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&Config {
            data_dir: dir.path().into(),
            disk_free_mb_min: 0,
            ..Config::default()
        })
        .unwrap();
        let metrics = Shared::new().register(Metrics::new);
        let faulty = |faults: &[(u64, Option<ErrorKind>)]| Faulty {
            inner: store.stores().posts,
            faults: faults.to_vec(),
        };
        let entries: Vec<Archived> = (1..=9).map(post).collect();
        let ill = Disposition::fault("ill");

        let posts = faulty(&[(3, Some(ErrorKind::Corrupt)), (7, None)]);
        let outcomes = archive(&posts, &metrics, &entries).await;
        for (outcome, id) in outcomes.iter().zip(1..) {
            match id {
                3 => assert_eq!(*outcome, ill),
                7 => assert!(matches!(outcome, Disposition::Fault { .. }), "{outcome:?}"),
                _ => assert_eq!(*outcome, Disposition::Ack, "{id}"),
            }
        }
        let ids: Vec<PostId> = (1..=9).map(PostId).collect();
        let stored = posts.get(&ids).await.unwrap();
        assert_eq!(stored.iter().filter(|post| post.is_some()).count(), 7);

        // A store that goes away meanwhile: what was not tried comes again.
        let posts = faulty(&[(3, Some(ErrorKind::Corrupt)), (8, Some(ErrorKind::Unavailable))]);
        let outcomes = archive(&posts, &metrics, &entries).await;
        assert_eq!(outcomes[0], Disposition::Ack);
        assert_eq!(outcomes[2], ill);
        assert_eq!(outcomes[8], Disposition::retry("ill"));
    }
}
