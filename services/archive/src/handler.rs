//! The handler of the consumers: writes posts and deletions from POSTS to the store, in batches.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use herald_failure::{Classified, isolate};
use herald_mesh::{Delivery, Disposition, Handler, MessageLink, batch_span, consumers, streams};
use herald_runtime::telemetry::error_chain;
use herald_store::{Archived, Erasures, Error, ErrorKind, Posts, Result, Users};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use crate::{Metrics, late_posts};

/// Bounds of the delay between two attempts at a batch that waits for the store; it doubles.
const WAIT_MIN: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The role in the spans.
const ROLE: &str = "archive";

struct ArchiveRequest {
    entry: Archived,
    link: Option<MessageLink>,
    reply: oneshot::Sender<Disposition>,
}

/// What a batch reads and writes.
pub(crate) struct Stores {
    pub(crate) users: Arc<dyn Users>,
    pub(crate) erasures: Arc<dyn Erasures>,
    pub(crate) posts: Arc<dyn Posts>,
}

/// Handler for messages of POSTS. A message is acknowledged after its batch is committed. The next batch fills while
/// the current one is written.
pub(crate) struct Archive {
    requests: mpsc::Sender<ArchiveRequest>,
    _writer_guard: DropGuard,
}

impl Archive {
    /// Starts the writer task; dropping the `Archive` stops it.
    ///
    /// After `shutdown` no message waits for the store any more.
    pub(crate) fn new(
        stores: Stores,
        metrics: Metrics,
        batch_max: usize,
        shutdown: CancellationToken,
    ) -> Self {
        let (requests, queue) = mpsc::channel(batch_max);
        let stop = CancellationToken::new();
        let writer = run_writer(stores, metrics, queue, batch_max, shutdown);
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(writer).await });
        Self {
            requests,
            _writer_guard: stop.drop_guard(),
        }
    }

    async fn archive(&self, entry: Archived, link: Option<MessageLink>) -> Disposition {
        let (reply, disposition) = oneshot::channel();
        let stopped = || Disposition::retry("the archive writer has stopped");
        let request = ArchiveRequest { entry, link, reply };
        if self.requests.send(request).await.is_err() {
            return stopped();
        }
        disposition.await.unwrap_or_else(|_| stopped())
    }
}

#[async_trait]
impl Handler for Archive {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        match herald_posts::entry(delivery.subject, delivery.sequence, delivery.payload.clone()) {
            Ok(entry) => self.archive(entry, delivery.link()).await,
            Err(reason) => Disposition::term(reason),
        }
    }

    fn handles_batches(&self) -> bool {
        true
    }
}

async fn run_writer(
    stores: Stores,
    metrics: Metrics,
    mut queue: mpsc::Receiver<ArchiveRequest>,
    batch_max: usize,
    shutdown: CancellationToken,
) {
    let mut batch = Vec::with_capacity(batch_max);
    while queue.recv_many(&mut batch, batch_max).await > 0 {
        let links: Vec<_> = batch.iter().filter_map(|request| request.link.clone()).collect();
        let span = batch_span(ROLE, streams::POSTS, consumers::ARCHIVE, batch.len(), &links);
        let (entries, replies): (Vec<_>, Vec<_>) = batch
            .drain(..)
            .map(|request| (request.entry, request.reply))
            .unzip();
        let archived = archive_batch(&stores, &metrics, &entries, &shutdown);
        let dispositions = archived.instrument(span).await;
        for (reply, disposition) in replies.into_iter().zip(dispositions) {
            // A dropped handler's message is redelivered, and archiving a post is idempotent.
            let _ = reply.send(disposition);
        }
    }
}

/// Writes entries; looks up authors whose keys the messages lack.
///
/// [`Corrupt`](ErrorKind::Corrupt) for a post whose id another one has.
async fn write(stores: &Stores, entries: &[Archived]) -> Result<()> {
    refuse_reused_ids(&*stores.posts, entries).await?;
    if !entries.iter().any(herald_posts::lacks_author) {
        return write_resolved(stores, entries).await;
    }
    let mut entries = entries.to_vec();
    herald_posts::resolve_authors(&*stores.users, &mut entries).await?;
    write_resolved(stores, &entries).await
}

/// Writes entries that have the keys of their authors.
async fn write_resolved(stores: &Stores, entries: &[Archived]) -> Result<()> {
    stores.posts.archive(entries).await?;
    late_posts::erase(&*stores.users, &*stores.erasures, entries).await
}

/// Refuses a post whose id another post in the store has: POSTS lost its newest messages, and gave their sequences again.
///
/// Posts arrive in the order of their ids, so nearly always all of a batch are newer than the newest one in the store.
async fn refuse_reused_ids(posts: &dyn Posts, entries: &[Archived]) -> Result<()> {
    let Some(newest) = posts.last().await? else {
        return Ok(());
    };
    let created = entries.iter().filter_map(|entry| match entry {
        Archived::Created(post) if post.id <= newest => Some(post),
        _ => None,
    });
    let created: Vec<_> = created.collect();
    if created.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = created.iter().map(|post| post.id).collect();
    for (post, stored) in created.into_iter().zip(posts.get(&ids).await?) {
        if stored.is_some_and(|stored| !herald_posts::is_same_post(&stored, post)) {
            let id = post.id;
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the store has another post with the id {id}: POSTS lost its newest messages and used their \
                     sequences again; stop all processes of Herald and run `herald recover`"
                ),
            ));
        }
    }
    Ok(())
}

/// Writes a batch and returns the disposition of each message. An entry with a permanent error is isolated; the rest of
/// the batch is written.
///
/// While the store is away, the batch waits here: heartbeats keep its messages, they spend no attempts, and no more
/// messages are pulled than fit into the queue.
async fn archive_batch(
    stores: &Stores,
    metrics: &Metrics,
    entries: &[Archived],
    shutdown: &CancellationToken,
) -> Vec<Disposition> {
    let mut delay = WAIT_MIN;
    let written = loop {
        let written = isolate(entries.len(), true, |part| write(stores, &entries[part])).await;
        match &written.stopped {
            Some(Classified::Transient(error)) if error.is_away() => {
                if delay == WAIT_MIN {
                    tracing::warn!(error = error_chain(error), "posts wait for the store");
                }
            }
            _ => break written,
        }
        let waiting = shutdown.run_until_cancelled(tokio::time::sleep(delay));
        if waiting.await.is_none() {
            break written;
        }
        delay = (2 * delay).min(WAIT_MAX);
    };
    if delay > WAIT_MIN && written.stopped.is_none() {
        tracing::info!("no post waits for the store any more");
    }
    if let Some(Classified::Transient(error)) = &written.stopped {
        let error = error_chain(error);
        tracing::error!(
            posts = entries.len(),
            error,
            "archive batch failed, messages will be retried"
        );
    }
    let rest = written.stopped.map_or(Disposition::Ack, Disposition::from);
    let mut dispositions = vec![rest; entries.len()];
    for (part, ()) in written.done {
        metrics.batches.inc();
        metrics.messages.inc_by(part.len() as u64);
        dispositions[part].fill(Disposition::Ack);
    }
    for (index, reason) in written.failed {
        dispositions[index] = Disposition::fault(reason);
    }
    dispositions
}

#[cfg(test)]
mod tests {
    use herald_model::{Post, PostId, UserId, UserKey, time::Timestamp};
    use herald_runtime::metrics::Shared;

    use super::*;
    use crate::testing;

    /// Fails to archive some posts.
    struct Faulty {
        inner: Arc<dyn Posts>,
        /// Post id and error kind; `None` panics.
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
                    return Err(Error::new(kind, "corrupt row"));
                }
            }
            self.inner.archive(entries).await
        }

        async fn get(&self, posts: &[PostId]) -> Result<Vec<Option<Post>>> {
            self.inner.get(posts).await
        }

        async fn newest_by_author(
            &self,
            author: UserKey,
            up_to: PostId,
            limit: usize,
        ) -> Result<Vec<PostId>> {
            self.inner.newest_by_author(author, up_to, limit).await
        }

        async fn find_by_request(&self, author: UserKey, request_id: &str) -> Result<Option<PostId>> {
            self.inner.find_by_request(author, request_id).await
        }

        async fn capacity(&self) -> Result<()> {
            self.inner.capacity().await
        }

        async fn last(&self) -> Result<Option<PostId>> {
            self.inner.last().await
        }

        async fn first_since(&self, moment: Timestamp) -> Result<PostId> {
            self.inner.first_since(moment).await
        }

        async fn list(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
            self.inner.list(after, limit).await
        }

        async fn of_author(
            &self,
            author: UserKey,
            after: Option<PostId>,
            limit: usize,
        ) -> Result<Vec<PostId>> {
            self.inner.of_author(author, after, limit).await
        }

        async fn erase_texts(&self, posts: &[PostId]) -> Result<u64> {
            self.inner.erase_texts(posts).await
        }

        async fn erase_damaged(
            &self,
            author: UserKey,
            posts: &[PostId],
            at: Timestamp,
        ) -> Result<Vec<PostId>> {
            self.inner.erase_damaged(author, posts, at).await
        }
    }

    fn post(id: u64) -> Archived {
        testing::post(id, UserKey(1))
    }

    fn of(stores: &herald_store::Stores) -> Stores {
        Stores {
            users: stores.users.clone(),
            erasures: stores.erasures.clone(),
            posts: stores.posts.clone(),
        }
    }

    #[tokio::test]
    async fn the_author_of_a_post_without_a_key_is_looked_up() {
        let (_dir, store) = testing::store();
        let stores = store.stores();
        let ids = ["bob", "ann"].map(|id| UserId::new(id).unwrap());
        let known = stores.users.intern(&ids[..1]).await.unwrap()[0];
        let by = |id: u64, author: &UserId| match post(id) {
            Archived::Created(post) => Archived::Created(Post {
                author: herald_posts::NO_KEY,
                author_id: author.clone(),
                ..post
            }),
            deleted @ Archived::Deleted { .. } => deleted,
        };
        let entries = [by(1, &ids[1]), by(2, &ids[0]), by(3, &ids[1])];
        let metrics = Shared::new().register(Metrics::new);
        let running = CancellationToken::new();
        let outcomes = archive_batch(&of(&stores), &metrics, &entries, &running).await;
        assert_eq!(outcomes, [const { Disposition::Ack }; 3]);
        let new = stores.users.find(&ids[1..]).await.unwrap()[0].unwrap();
        for (author, posts) in [(known, vec![PostId(2)]), (new, vec![PostId(3), PostId(1)])] {
            let found = stores.posts.newest_by_author(author, PostId(9), 9).await.unwrap();
            assert_eq!(found, posts);
        }
        let repeated = stores.posts.find_by_request(new, "request 3").await.unwrap();
        assert_eq!(repeated, Some(PostId(3)));
    }

    #[tokio::test]
    async fn a_post_with_the_id_of_another_one_is_refused() {
        let (_dir, store) = testing::store();
        let stores = store.stores();
        let metrics = Shared::new().register(Metrics::new);
        let running = CancellationToken::new();
        let archive =
            async |entries: &[Archived]| archive_batch(&of(&stores), &metrics, entries, &running).await;
        let posts: Vec<Archived> = (1..=3).map(post).collect();
        assert_eq!(archive(&posts).await, [const { Disposition::Ack }; 3]);
        let other = match post(2) {
            Archived::Created(two) => Archived::Created(Post {
                request_id: "another request".into(),
                ..two
            }),
            deleted @ Archived::Deleted { .. } => deleted,
        };
        // Redelivered posts are the same ones.
        let batch = [posts[0].clone(), other, posts[2].clone(), post(4)];
        let outcomes = archive(&batch).await;
        let Disposition::Fault { .. } = &outcomes[1] else {
            panic!("{outcomes:?}")
        };
        assert!(format!("{:?}", outcomes[1]).contains("another post with the id 2"));
        for index in [0, 2, 3] {
            assert_eq!(outcomes[index], Disposition::Ack, "{index}");
        }
        let stored = stores.posts.get(&[PostId(2)]).await.unwrap();
        assert_eq!(stored[0].as_ref().unwrap().request_id, "request 2");
    }

    #[tokio::test]
    async fn posts_that_fail_permanently_are_isolated_from_their_batch() {
        let (_dir, store) = testing::store();
        let metrics = Shared::new().register(Metrics::new);
        let faulty = |faults: &[(u64, Option<ErrorKind>)]| {
            let stores = of(&store.stores());
            Stores {
                posts: Arc::new(Faulty {
                    inner: stores.posts,
                    faults: faults.to_vec(),
                }),
                ..stores
            }
        };
        let entries: Vec<Archived> = (1..=9).map(post).collect();
        let corrupt = Disposition::fault("corrupt row");

        let stores = faulty(&[(3, Some(ErrorKind::Corrupt)), (7, None)]);
        let running = CancellationToken::new();
        let outcomes = archive_batch(&stores, &metrics, &entries, &running).await;
        for (outcome, id) in outcomes.iter().zip(1..) {
            match id {
                3 => assert_eq!(*outcome, corrupt),
                7 => assert!(matches!(outcome, Disposition::Fault { .. }), "{outcome:?}"),
                _ => assert_eq!(*outcome, Disposition::Ack, "{id}"),
            }
        }
        let ids: Vec<PostId> = (1..=9).map(PostId).collect();
        let stored = stores.posts.get(&ids).await.unwrap();
        assert_eq!(stored.iter().filter(|post| post.is_some()).count(), 7);

        // The store becomes unavailable halfway, and the service stops: the remaining messages are retried.
        let stopped = CancellationToken::new();
        stopped.cancel();
        let stores = faulty(&[(3, Some(ErrorKind::Corrupt)), (8, Some(ErrorKind::Unavailable))]);
        let outcomes = archive_batch(&stores, &metrics, &entries, &stopped).await;
        assert_eq!(outcomes[0], Disposition::Ack);
        assert_eq!(outcomes[2], corrupt);
        assert_eq!(outcomes[8], Disposition::retry("corrupt row"));
    }
}
