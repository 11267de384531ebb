//! A records database for tests, gone when dropped.

use std::sync::Arc;

use super::{records::Records, space::Space};

/// The database and its directory.
pub(crate) struct Store {
    records: Option<Arc<Records>>,
    dir: tempfile::TempDir,
}

impl Store {
    /// An empty one.
    pub(crate) fn new() -> Self {
        let mut store = Self {
            records: None,
            dir: tempfile::tempdir().unwrap(),
        };
        store.reopen();
        store
    }

    /// The database.
    pub(crate) fn records(&self) -> &Arc<Records> {
        self.records.as_ref().unwrap()
    }

    /// Closes it and opens it again. Whoever uses it must be gone.
    pub(crate) fn reopen(&mut self) {
        if let Some(records) = self.records.take() {
            assert_eq!(Arc::strong_count(&records), 1, "the database is still in use");
        }
        let space = Arc::new(Space::new(self.dir.path(), 0));
        self.records = Some(Arc::new(
            Records::open(&self.dir.path().join("records"), 8, space).unwrap(),
        ));
    }
}
