//! A temporary database for tests.

use std::{
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use tokio::runtime::{self, Runtime};

use super::{database::Database, fault::Fault, space::Space};

/// Runs a future on a runtime that all tests share.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| runtime::Builder::new_current_thread().build().unwrap());
    RUNTIME.block_on(future)
}

/// A database in a temporary directory, which is removed on drop.
pub(crate) struct Store {
    database: Option<Arc<Database>>,
    dir: tempfile::TempDir,
}

impl Store {
    /// Opens an empty database.
    pub(crate) fn new() -> Self {
        let mut store = Self {
            database: None,
            dir: tempfile::tempdir().unwrap(),
        };
        store.reopen();
        store
    }

    /// The database.
    pub(crate) fn database(&self) -> &Arc<Database> {
        self.database.as_ref().unwrap()
    }

    /// Closes and reopens the database. Panics if it is still in use.
    pub(crate) fn reopen(&mut self) {
        if let Some(database) = self.database.take() {
            assert_eq!(Arc::strong_count(&database), 1, "the database is still in use");
        }
        let space = Arc::new(Space::new(self.dir.path(), 0));
        let fault = Arc::new(Fault::new(self.dir.path()));
        self.database = Some(Arc::new(
            Database::open(self.dir.path(), "rows", 8, space, fault, Arc::default()).unwrap(),
        ));
    }

    /// Path of the newest journal.
    pub(crate) fn journal(&self) -> PathBuf {
        let entries = std::fs::read_dir(self.dir.path().join("rows")).unwrap();
        let mut journals: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "jnl"))
            .collect();
        journals.sort_unstable();
        journals.pop().unwrap()
    }
}
