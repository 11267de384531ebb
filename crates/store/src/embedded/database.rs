//! A fjall database with atomic batches, many of them made durable by one fsync.

use std::{
    fs::File,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread::JoinHandle,
};

use fjall::{Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Snapshot};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::{
    dir::io_error,
    shared_error::{SharedError, with_sources},
    space::Space,
};
use crate::{Error, ErrorKind, Result};

/// Memtable of one keyspace, bytes. Small, because there are many keyspaces.
const MEMTABLE_BYTES: u64 = 8 << 20;

/// Journals on disk, bytes; fjall flushes the memtables that keep the oldest one alive when there are more.
const JOURNALS_BYTES: u64 = 256 << 20;

/// The options of a keyspace to start from. They are kept with the keyspace when it is made.
pub(crate) fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
}

/// A database of the store.
///
/// *Invariant:* a batch whose [`commit`](Self::commit) resolved with `Ok` is on disk. After one failed fsync nothing is known
/// about what the kernel dropped, so no commit succeeds until the store is opened again.
pub(crate) struct Database {
    fjall: fjall::Database,
    space: Arc<Space>,
    committer: Arc<Committer>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Database {
    /// Opens the database `name` in the directory of that name, making it when it isn't there.
    pub(crate) fn open(parent: &Path, name: &'static str, cache_mb: u64, space: Arc<Space>) -> Result<Self> {
        let dir = parent.join(name);
        let fjall = fjall::Database::builder(&dir)
            .cache_size(cache_mb << 20)
            .max_journaling_size(JOURNALS_BYTES)
            .manual_journal_persist(true)
            // With more, the first one spins while another compacts.
            .worker_threads(1)
            .open()
            .map_err(map_err)?;
        let committer = Arc::new(Committer::new(name));
        let thread = std::thread::Builder::new()
            .name(format!("{name}-commit"))
            .spawn({
                let committer = Arc::clone(&committer);
                let fjall = fjall.clone();
                let mut journal = Journal { dir, current: None };
                move || committer.run(|| journal.sync(&fjall))
            })
            .map_err(|e| io_error("can't start the committer thread".into(), e))?;
        Ok(Self {
            fjall,
            space,
            committer,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Opens a keyspace, making it with these options when it isn't there. Start from [`options`].
    pub(crate) fn keyspace(
        &self,
        name: &str,
        options: impl FnOnce() -> KeyspaceCreateOptions,
    ) -> Result<Keyspace> {
        self.fjall.keyspace(name, options).map_err(map_err)
    }

    /// The disk it is on.
    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// An empty batch.
    pub(crate) fn batch(&self) -> OwnedWriteBatch {
        self.fjall.batch()
    }

    /// One moment of all keyspaces. What is applied later isn't in it.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.fjall.snapshot()
    }

    /// Applies a batch, all or nothing. On return everyone can read it; it is durable when the returned future resolves
    /// with `Ok`. For writers that read first: hold a lock around the reading and this call, and await after it.
    pub(crate) fn apply(&self, batch: OwnedWriteBatch) -> Result<Committed> {
        self.space.check()?;
        self.committer.check()?;
        batch.commit().map_err(|e| self.committer.fail(&map_err(e)))?;
        self.committer.wait()
    }

    /// Applies a batch as [`apply`](Self::apply) does, and writes it to the journal: on return it outlives this process, but
    /// not yet a loss of power.
    pub(crate) fn write(&self, batch: OwnedWriteBatch) -> Result<Committed> {
        let committed = self.apply(batch)?;
        let written = self.fjall.persist(PersistMode::Buffer);
        written.map_err(|e| self.committer.fail(&map_err(e)))?;
        Ok(committed)
    }

    /// Applies a batch and waits until it is durable.
    pub(crate) async fn commit(&self, batch: OwnedWriteBatch) -> Result<()> {
        self.apply(batch)?.await
    }

    /// Makes what was applied durable and ends the committer; later commits are refused.
    pub(crate) fn close(&self) -> Result<()> {
        self.committer.state.lock().closing = true;
        self.committer.wake.notify_one();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the committer thread panicked",
            ));
        }
        match &self.committer.state.lock().failed {
            Some(failure) => Err(failure.error()),
            None => Ok(()),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            let database = self.committer.name;
            tracing::error!(%error, database, "a database was not closed cleanly");
        }
    }
}

/// Resolves when a batch is durable. Dropping it changes nothing about the batch.
pub(crate) struct Committed(oneshot::Receiver<std::result::Result<(), SharedError>>);

impl Future for Committed {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0).poll(context).map(|answer| match answer {
            Ok(outcome) => outcome.map_err(|failure| failure.error()),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                "the committer ended before the batch was durable",
            )),
        })
    }
}

/// Those who wait for the next fsync.
struct Committer {
    /// Of the database.
    name: &'static str,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<oneshot::Sender<std::result::Result<(), SharedError>>>,
    failed: Option<SharedError>,
    closing: bool,
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failed {
            Some(failure) => Err(failure.error()),
            None if self.closing => Err(Error::new(ErrorKind::Unavailable, "the store is closed")),
            None => Ok(()),
        }
    }
}

impl Committer {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            state: Mutex::default(),
            wake: Condvar::default(),
        }
    }

    fn check(&self) -> Result<()> {
        self.state.lock().check()
    }

    /// Refuses everything from now on. Answers with the error to pass on.
    fn fail(&self, error: &Error) -> Error {
        let mut state = self.state.lock();
        let failure = SharedError::new(
            &format!("{} can't be written until the store is opened again", self.name),
            error,
        );
        let error = failure.error();
        state.failed.get_or_insert(failure);
        error
    }

    fn wait(&self) -> Result<Committed> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.check()?;
        state.waiting.push(sender);
        drop(state);
        self.wake.notify_one();
        Ok(Committed(receiver))
    }

    /// Syncs for all who wait, until the end.
    fn run(&self, mut sync: impl FnMut() -> Result<()>) {
        // Whatever ends this, nobody waits for ever.
        let _ended = Ended(self);
        loop {
            let waiting = {
                let mut state = self.state.lock();
                while state.waiting.is_empty() && !state.closing {
                    self.wake.wait(&mut state);
                }
                if state.waiting.is_empty() {
                    return;
                }
                std::mem::take(&mut state.waiting)
            };
            if let Err(error) = sync() {
                tracing::error!(
                    error = with_sources(&error),
                    database = self.name,
                    "what was written could not be made durable, refusing writes"
                );
                self.fail(&error);
            }
            let outcome = match &self.state.lock().failed {
                Some(failure) => Err(failure.clone()),
                None => Ok(()),
            };
            for waiter in waiting {
                // One who no longer waits is no failure.
                let _ = waiter.send(outcome.clone());
            }
        }
    }
}

/// Refuses what comes after the committer's end, and drops those who wait.
struct Ended<'a>(&'a Committer);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.closing = true;
        state.waiting.clear();
    }
}

/// The journal that fjall is writing, by a descriptor of our own: fjall holds its lock while it syncs, and every commit
/// would wait for it on a runtime's thread.
struct Journal {
    dir: PathBuf,
    current: Option<(u64, File)>,
}

impl Journal {
    /// Makes every batch applied before this call durable. A journal that fjall has put away was synced by it first.
    fn sync(&mut self, fjall: &fjall::Database) -> Result<()> {
        fjall.persist(PersistMode::Buffer).map_err(map_err)?;
        self.sync_newest()
            .map_err(|e| io_error("can't sync the journal".into(), e))
    }

    fn sync_newest(&mut self) -> std::io::Result<()> {
        let mut newest = None;
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let id = name
                .to_str()
                .and_then(|n| n.strip_suffix(".jnl"))
                .and_then(|n| n.parse::<u64>().ok());
            newest = newest.max(id);
        }
        let id = newest.ok_or_else(|| std::io::Error::other("no journal in the directory"))?;
        let file = match self.current.take() {
            Some((of, file)) if of == id => file,
            _ => File::open(self.dir.join(format!("{id}.jnl")))?,
        };
        file.sync_data()?;
        self.current = Some((id, file));
        Ok(())
    }
}

/// An error of fjall, with the kind that fits.
pub(crate) fn map_err(error: fjall::Error) -> Error {
    let kind = match &error {
        fjall::Error::Locked => ErrorKind::Locked,
        fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => {
            return map_io(e.kind(), error);
        }
        fjall::Error::Poisoned | fjall::Error::KeyspaceDeleted => ErrorKind::Unavailable,
        _ => ErrorKind::Corrupt,
    };
    Error::with_source(kind, "the storage engine failed", error)
}

fn map_io(kind: std::io::ErrorKind, error: fjall::Error) -> Error {
    let kind = io_error(String::new(), kind.into()).kind();
    Error::with_source(kind, "the storage engine can't use the disk", error)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::{executor::block_on, future::join_all};

    use super::*;
    use crate::embedded::testing::Store;

    /// Runs a committer with this as its fsync.
    fn committing(sync: impl FnMut() -> Result<()> + Send, test: impl FnOnce(&Committer)) {
        let committer = Committer::new("rows");
        std::thread::scope(|scope| {
            scope.spawn(|| committer.run(sync));
            test(&committer);
            committer.state.lock().closing = true;
            committer.wake.notify_one();
        });
    }

    #[test]
    fn what_is_committed_is_in_the_newest_journal() {
        let store = Store::new();
        let database = store.database();
        let rows = database.keyspace("rows", options).unwrap();
        for text in ["the first of some words", "the last of some words"] {
            let mut batch = database.batch();
            batch.insert(&rows, "key", text);
            block_on(database.commit(batch)).unwrap();
            let written = std::fs::read(store.journal()).unwrap();
            assert!(
                written.windows(text.len()).any(|w| w == text.as_bytes()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_batch_is_readable_before_it_is_durable() {
        let store = Store::new();
        let database = store.database();
        let rows = database.keyspace("rows", options).unwrap();
        let mut batch = database.batch();
        batch.insert(&rows, "key", "value");
        let committed = database.apply(batch).unwrap();
        assert_eq!(rows.get("key").unwrap().as_deref(), Some(&b"value"[..]));
        block_on(committed).unwrap();
    }

    #[test]
    fn one_fsync_serves_all_who_wait() {
        let syncs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&syncs);
        let (go, wait) = std::sync::mpsc::channel();
        let sync = move || {
            counted.fetch_add(1, Ordering::SeqCst);
            wait.recv().unwrap();
            Ok(())
        };
        committing(sync, |committer| {
            // The first fsync may take only some of them; the second takes all the rest.
            let waiting: Vec<_> = (0..100).map(|_| committer.wait().unwrap()).collect();
            go.send(()).unwrap();
            go.send(()).unwrap();
            for outcome in block_on(join_all(waiting)) {
                outcome.unwrap();
            }
        });
        assert!(syncs.load(Ordering::SeqCst) <= 2);
    }

    #[test]
    fn after_a_failed_fsync_nothing_is_committed() {
        let mut outcomes = [Ok(()), Err(Error::new(ErrorKind::Full, "no room"))].into_iter();
        committing(
            || outcomes.next().unwrap_or(Ok(())),
            |committer| {
                block_on(committer.wait().unwrap()).unwrap();
                let failed = block_on(committer.wait().unwrap()).unwrap_err();
                assert_eq!(failed.kind(), ErrorKind::Full);
                let refused = committer.wait().err().unwrap();
                assert_eq!(refused.kind(), ErrorKind::Full);
            },
        );
    }

    #[test]
    fn nobody_waits_for_a_committer_that_panicked() {
        let committer = Committer::new("rows");
        std::thread::scope(|scope| {
            let waiting = committer.wait().unwrap();
            let thread = scope.spawn(|| committer.run(|| panic!("on purpose")));
            assert_eq!(block_on(waiting).unwrap_err().kind(), ErrorKind::Unavailable);
            thread.join().unwrap_err();
            assert_eq!(committer.wait().err().unwrap().kind(), ErrorKind::Unavailable);
        });
    }

    #[test]
    fn a_closed_database_takes_no_more() {
        let store = Store::new();
        let database = store.database();
        database.close().unwrap();
        let refused = block_on(database.commit(database.batch())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
    }
}
