//! A fjall database with atomic batches and group commit: one fsync makes many batches durable.

use std::{
    future::Future,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread::JoinHandle,
};

use fjall::{Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Snapshot};
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::oneshot;

use super::{
    dir::io_error, fault::Fault, journal::ActiveJournal, shared_error::SharedError, space::Space, tables,
};
use crate::{Error, ErrorKind, Result};

/// Memtable size of one keyspace, bytes. Small, because there are many keyspaces.
const MEMTABLE_BYTES: u64 = 8 << 20;

/// Maximum size of all journals, bytes. Above it, fjall flushes the memtables that still need the oldest journal.
const JOURNALS_BYTES: u64 = 256 << 20;

/// Default options of a keyspace. fjall stores the options with the keyspace when it is created.
pub(crate) fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
}

/// A database of the store.
///
/// *Invariant:* a batch whose [`commit`](Self::commit) resolved with `Ok` is on disk. After a failed fsync the kernel
/// may have dropped any unsynced page, so no commit succeeds until the store is opened again.
pub(crate) struct Database {
    fjall: fjall::Database,
    /// Held while a batch is applied. A backup waits for it, so that no database has a later state than another.
    gate: Arc<RwLock<()>>,
    space: Arc<Space>,
    committer: Arc<Committer>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Database {
    /// Opens the database in the directory `name` below `parent`; creates it if it does not exist.
    pub(crate) fn open(
        parent: &Path,
        name: &'static str,
        cache_mb: u64,
        space: Arc<Space>,
        fault: Arc<Fault>,
        gate: Arc<RwLock<()>>,
    ) -> Result<Self> {
        let dir = parent.join(name);
        let fjall = fjall::Database::builder(&dir)
            .cache_size(cache_mb << 20)
            .max_cached_files(Some(files_cached_max()))
            .max_journaling_size(JOURNALS_BYTES)
            .manual_journal_persist(true)
            // With more workers, the first one occupies a processor while another compacts.
            .worker_threads(1)
            .open()
            .map_err(|error| opening(&dir, error))?;
        let committer = Arc::new(Committer::new(name, fault));
        let thread = std::thread::Builder::new()
            .name(format!("{name}-commit"))
            .spawn({
                let committer = Arc::clone(&committer);
                let fjall = fjall.clone();
                let mut journal = ActiveJournal::new(dir);
                move || committer.run(|| journal.sync(&fjall))
            })
            .map_err(|e| io_error("can't start the committer thread".into(), e))?;
        Ok(Self {
            fjall,
            gate,
            space,
            committer,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Opens a keyspace; creates it with these options if it does not exist. Derive them from [`options`].
    pub(crate) fn keyspace(
        &self,
        name: &str,
        options: impl FnOnce() -> KeyspaceCreateOptions,
    ) -> Result<Keyspace> {
        self.fjall.keyspace(name, options).map_err(map_err)
    }

    /// The database of fjall.
    pub(crate) fn fjall(&self) -> &fjall::Database {
        &self.fjall
    }

    /// Reports a fault of fjall's own threads, which tell nobody: they refuse all later writes.
    pub(crate) fn check(&self) -> Result<()> {
        self.committer.check()?;
        self.fjall
            .persist(PersistMode::Buffer)
            .map_err(|e| self.committer.fail(&map_err(e)))
    }

    /// Checks that new posts can be accepted: the engine has not failed, and its disk has room for what they need later.
    pub(crate) fn check_for_more(&self) -> Result<()> {
        self.committer.check()?;
        self.space.check_for_more()
    }

    /// An empty batch.
    pub(crate) fn batch(&self) -> OwnedWriteBatch {
        self.fjall.batch()
    }

    /// A snapshot of all keyspaces.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.fjall.snapshot()
    }

    /// Applies a batch, all or nothing. On return it is readable; it is durable when the returned future resolves with
    /// `Ok`. A writer that reads before it writes holds a lock over its reads and this call, and awaits the future
    /// without the lock.
    pub(crate) fn apply(&self, batch: OwnedWriteBatch) -> Result<Committed> {
        self.space.check()?;
        self.committer.check()?;
        let _open = self.gate.read();
        batch.commit().map_err(|e| self.committer.fail(&map_err(e)))?;
        self.committer.wait_for_sync()
    }

    /// Applies a batch and waits until it is durable.
    pub(crate) async fn commit(&self, batch: OwnedWriteBatch) -> Result<()> {
        self.apply(batch)?.await
    }

    /// Makes applied batches durable and ends the committer. Later commits are refused.
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
            tracing::error!(%error, database, "can't close a database cleanly");
        }
    }
}

/// Resolves with `Ok` when a batch is durable. Dropping the future does not cancel the batch.
pub(crate) struct Committed(oneshot::Receiver<std::result::Result<(), SharedError>>);

impl Future for Committed {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0).poll(context).map(|answer| match answer {
            Ok(outcome) => outcome.map_err(|failure| failure.error()),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                "the committer thread ended before the batch was durable",
            )),
        })
    }
}

/// Runs fsync for all callers that wait for durability.
struct Committer {
    /// Name of the database.
    name: &'static str,
    /// Of the whole engine.
    fault: Arc<Fault>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<oneshot::Sender<std::result::Result<(), SharedError>>>,
    /// A write or an fsync of this database failed.
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
    fn new(name: &'static str, fault: Arc<Fault>) -> Self {
        Self {
            name,
            fault,
            state: Mutex::default(),
            wake: Condvar::default(),
        }
    }

    fn check(&self) -> Result<()> {
        self.fault.check()?;
        self.state.lock().check()
    }

    /// Refuses all later batches of the engine. Returns the error for the caller.
    fn fail(&self, error: &Error) -> Error {
        let refusal = self
            .fault
            .report(&format!("can't write to the database {}", self.name), error);
        self.state.lock().failed.get_or_insert(SharedError::of(&refusal));
        refusal
    }

    fn wait_for_sync(&self) -> Result<Committed> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.check()?;
        state.waiting.push(sender);
        drop(state);
        self.wake.notify_one();
        Ok(Committed(receiver))
    }

    /// Runs one fsync after the other, each for all callers that wait, until the database is closed.
    fn run(&self, mut sync: impl FnMut() -> Result<()>) {
        // Releases the waiting callers even after a panic.
        let _guard = RefuseOnDrop(self);
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
                self.fail(&error);
            }
            let outcome = match &self.state.lock().failed {
                Some(failure) => Err(failure.clone()),
                None => Ok(()),
            };
            for waiter in waiting {
                // The caller may have stopped waiting.
                let _ = waiter.send(outcome.clone());
            }
        }
    }
}

/// Refuses later batches and releases the waiting callers when the committer thread ends.
struct RefuseOnDrop<'a>(&'a Committer);

impl Drop for RefuseOnDrop<'_> {
    fn drop(&mut self) {
        let committer = self.0;
        let mut state = committer.state.lock();
        let was_closing = std::mem::replace(&mut state.closing, true);
        state.waiting.clear();
        drop(state);
        if !was_closing {
            committer.fail(&Error::new(
                ErrorKind::Unavailable,
                "the committer thread panicked",
            ));
        }
    }
}

/// Maximum number of files that one database keeps open for reads: the databases together use less than half of the
/// limit of the process.
pub(crate) fn files_cached_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = limit.current.unwrap_or(u64::MAX) / 10;
    usize::try_from(limit).unwrap_or(usize::MAX).clamp(16, 900)
}

/// Maps an error of fjall to the store's kind of error.
pub(crate) fn map_err(error: fjall::Error) -> Error {
    let kind = match &error {
        fjall::Error::Locked => ErrorKind::Locked,
        fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => {
            return map_io(e.kind(), error);
        }
        fjall::Error::Poisoned | fjall::Error::KeyspaceDeleted => ErrorKind::Unavailable,
        _ => ErrorKind::Corrupt,
    };
    Error::with_source(kind, "the embedded database failed", error)
}

/// The error of a database that can't be opened.
pub(crate) fn opening(dir: &Path, error: fjall::Error) -> Error {
    let error = map_err(error);
    let remedy = match error.kind() {
        ErrorKind::Corrupt => damage(dir),
        ErrorKind::Full => ": its disk is full; free some space".into(),
        ErrorKind::Locked => ": it is open in another process; stop that one".into(),
        _ => String::new(),
    };
    let message = format!("can't open the database {}{remedy}", dir.display());
    Error::with_source(error.kind(), message, error)
}

/// What is damaged in a database, and what to do.
fn damage(dir: &Path) -> String {
    let files = tables::damaged(dir);
    let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let damaged = if files.is_empty() {
        "a file in it".into()
    } else {
        files.join(", ")
    };
    if dir.ends_with("timelines") {
        let data_dir = dir.parent().unwrap_or(dir).display();
        return format!(
            ": damaged is {damaged}; run `herald recover --data-dir {data_dir}`: the next start then rebuilds the timelines from \
             the ledger"
        );
    }
    format!(
        ": damaged is {damaged}, which has the only copy of its data; restore the data directory from a backup (`herald \
         restore`)"
    )
}

fn map_io(kind: std::io::ErrorKind, error: fjall::Error) -> Error {
    let kind = io_error(String::new(), kind.into()).kind();
    Error::with_source(kind, "the embedded database can't access the disk", error)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::{executor::block_on, future::join_all};

    use super::*;
    use crate::embedded::testing::Store;

    /// Runs a committer with this fsync.
    fn with_committer(sync: impl FnMut() -> Result<()> + Send, test: impl FnOnce(&Committer)) {
        let committer = Committer::new("rows", Arc::new(Fault::new(Path::new("/data"))));
        std::thread::scope(|scope| {
            scope.spawn(|| committer.run(sync));
            test(&committer);
            committer.state.lock().closing = true;
            committer.wake.notify_one();
        });
    }

    #[test]
    fn a_committed_batch_is_in_the_newest_journal() {
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
    fn one_fsync_serves_all_waiting_callers() {
        let syncs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&syncs);
        let (allow, allowed) = std::sync::mpsc::channel();
        let sync = move || {
            counted.fetch_add(1, Ordering::SeqCst);
            allowed.recv().unwrap();
            Ok(())
        };
        with_committer(sync, |committer| {
            // The first fsync may serve only some callers; the second serves the rest.
            let waiting: Vec<_> = (0..100).map(|_| committer.wait_for_sync().unwrap()).collect();
            allow.send(()).unwrap();
            allow.send(()).unwrap();
            for outcome in block_on(join_all(waiting)) {
                outcome.unwrap();
            }
        });
        assert!(syncs.load(Ordering::SeqCst) <= 2);
    }

    #[test]
    fn after_a_failed_fsync_every_commit_fails() {
        let mut outcomes = [Ok(()), Err(Error::new(ErrorKind::Full, "no room"))].into_iter();
        with_committer(
            || outcomes.next().unwrap_or(Ok(())),
            |committer| {
                block_on(committer.wait_for_sync().unwrap()).unwrap();
                let failed = block_on(committer.wait_for_sync().unwrap()).unwrap_err();
                assert_eq!(failed.kind(), ErrorKind::Failed);
                let refused = committer.wait_for_sync().err().unwrap();
                assert_eq!(refused.kind(), ErrorKind::Failed);
                let told = block_on(committer.fault.wait()).to_string();
                assert!(told.contains("no room") && told.contains("/data"), "{told}");
            },
        );
    }

    #[test]
    fn a_panic_of_the_committer_releases_the_waiting_callers() {
        let committer = Committer::new("rows", Arc::new(Fault::new(Path::new("/data"))));
        std::thread::scope(|scope| {
            let waiting = committer.wait_for_sync().unwrap();
            let thread = scope.spawn(|| committer.run(|| panic!("on purpose")));
            assert_eq!(block_on(waiting).unwrap_err().kind(), ErrorKind::Unavailable);
            thread.join().unwrap_err();
            assert_eq!(committer.wait_for_sync().err().unwrap().kind(), ErrorKind::Failed);
            committer.fault.check().unwrap_err();
        });
    }

    #[test]
    fn a_closed_database_refuses_commits() {
        let store = Store::new();
        let database = store.database();
        database.close().unwrap();
        let refused = block_on(database.commit(database.batch())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
    }
}
