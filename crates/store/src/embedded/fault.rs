//! The fault that ends the engine.
//!
//! After a failed write or fsync nobody knows what is on disk: the kernel may have dropped any unsynced page, and fjall
//! refuses all later writes. Only opening the store again, from what the disk really has, is safe. So the first such
//! fault is kept here, every later write is refused with [`ErrorKind::Failed`], and the process, which waits for
//! [`Fault::wait`], ends and can be started again.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::sync::watch;

use super::shared_error::with_sources;
use crate::{Error, ErrorKind, Result};

/// What failed first. Shared by all databases of the engine.
pub(crate) struct Fault {
    dir: PathBuf,
    first: watch::Sender<Option<Failure>>,
}

#[derive(Clone)]
struct Failure {
    /// What failed and why, with paths: for the log and the operator.
    cause: String,
    remedy: &'static str,
}

impl Fault {
    /// No fault yet, of the engine in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            first: watch::Sender::new(None),
        }
    }

    /// [`Failed`](ErrorKind::Failed) after a fault.
    pub(crate) fn check(&self) -> Result<()> {
        if self.first.borrow().is_none() {
            Ok(())
        } else {
            Err(refusal())
        }
    }

    /// Records that `what` failed, unless something failed before. Returns the error for the callers.
    pub(crate) fn report(&self, what: &str, cause: &Error) -> Error {
        let failure = Failure {
            cause: format!("{what}: {}", with_sources(cause)),
            remedy: remedy(cause),
        };
        let is_first = self.first.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert_with(|| failure.clone());
            is_first
        });
        if is_first {
            tracing::error!(
                dir = %self.dir.display(),
                error = failure.cause,
                "the store failed and accepts nothing more"
            );
        }
        refusal()
    }

    /// Waits for the first fault, and returns what the operator must know.
    pub(crate) async fn wait(&self) -> Error {
        let mut first = self.first.subscribe();
        let failure = first.wait_for(Option::is_some).await;
        let failure = failure.ok().and_then(|failure| failure.clone());
        // The sender lives as long as `self`.
        let Some(Failure { cause, remedy }) = failure else {
            return refusal();
        };
        let dir = self.dir.display();
        Error::new(
            ErrorKind::Failed,
            format!(
                "the store in {dir} failed and can't be used until it is opened again: {cause}; {remedy}, then start herald \
                 again"
            ),
        )
    }
}

/// The error reaches callers of the API, so it has no path.
fn refusal() -> Error {
    Error::new(
        ErrorKind::Failed,
        "a write of the store to its disk failed: the server ends, and accepts nothing until it is started again",
    )
}

/// What the operator has to do before the next start.
fn remedy(cause: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut source = Some(cause);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space on its disk",
                io::ErrorKind::FileTooLarge => "raise the limit of file sizes (ulimit -f)",
                io::ErrorKind::ReadOnlyFilesystem => "make its file system writable",
                _ if is_out_of_descriptors(error) => "raise the limit of open files (ulimit -n)",
                _ => "check the disk and the kernel's log (dmesg)",
            };
        }
        if let Some(error) = error.downcast_ref::<Error>()
            && error.kind() == ErrorKind::Full
        {
            return "free some space on its disk";
        }
        source = error.source();
    }
    "see the log lines before for the cause and remove it, or run `herald recover` if a file is damaged"
}

/// Whether the process, or the system, has too many open files. It passes when others close theirs.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE]
        .map(|e| Some(e.raw_os_error()))
        .contains(&errno)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::executor::block_on;
    use herald_model::PostId;

    use super::*;
    use crate::embedded::{Config, Embedded};

    #[test]
    fn the_first_fault_is_told_with_its_directory_and_its_remedy() {
        let fault = Fault::new(Path::new("/data/store"));
        fault.check().unwrap();
        let too_many = io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        let cause = Error::with_source(ErrorKind::Unavailable, "can't open the journal", too_many);
        let refused = fault.report("the database records", &cause);
        assert_eq!(refused.kind(), ErrorKind::Failed);
        assert!(!refused.to_string().contains("/data"), "{refused}");
        assert_eq!(fault.check().unwrap_err().kind(), ErrorKind::Failed);
        fault.report("another database", &Error::new(ErrorKind::Full, "no room"));
        let told = block_on(fault.wait()).to_string();
        for part in [
            "/data/store",
            "the database records",
            "Too many open files",
            "ulimit -n",
            "start herald again",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_fault_of_a_thread_of_fjall_ends_the_engine() {
        for (database, keyspace) in [("records", "leases"), ("timelines", "state")] {
            let dir = tempfile::tempdir().unwrap();
            let store = Embedded::open(&Config {
                data_dir: dir.path().into(),
                ..Config::default()
            });
            let store = store.unwrap();
            let stores = store.stores();
            stores
                .leases
                .acquire("a lease", "one", crate::LEASE_DURATION)
                .await
                .unwrap();
            store.timelines().raise_oldest_kept(PostId(7)).unwrap();
            // The thread that flushes the memtable finds no directory for its table.
            for keyspace in std::fs::read_dir(dir.path().join(database).join("keyspaces")).unwrap() {
                let _ = std::fs::remove_dir_all(keyspace.unwrap().path().join("tables"));
            }
            let fjall = if database == "records" {
                store.databases().records.fjall()
            } else {
                store.timelines().fjall()
            };
            let rows = fjall
                .keyspace(keyspace, fjall::KeyspaceCreateOptions::default)
                .unwrap();
            rows.rotate_memtable().unwrap();
            let failed = tokio::time::timeout(Duration::from_mins(1), store.failed()).await;
            let failed = failed.expect("the fault is seen").to_string();
            assert!(
                failed.contains(database) && failed.contains(dir.path().to_str().unwrap()),
                "{failed}"
            );
            let refused = stores
                .leases
                .acquire("another", "one", crate::LEASE_DURATION)
                .await;
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Failed);
            assert_eq!(
                stores.posts.capacity().await.unwrap_err().kind(),
                ErrorKind::Failed
            );
        }
    }
}
