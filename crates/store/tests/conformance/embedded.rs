//! The embedded engine.

use herald_store::{
    Stores,
    embedded::{Config, Embedded},
};
use tempfile::TempDir;

use crate::engine::Engine;

/// The embedded engine in a temporary directory.
pub struct EmbeddedEngine {
    // Before the directory, because it is closed first.
    store: Option<Embedded>,
    dir: TempDir,
}

impl EmbeddedEngine {
    fn open(&mut self) {
        self.store = Some(Embedded::open(&config(self.dir.path())).unwrap());
    }
}

/// In memory where possible: a sync of a disk takes milliseconds, and of a busy one much longer. A kill of the process
/// loses nothing of either.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn config(dir: &std::path::Path) -> Config {
    let mut config = Config {
        data_dir: dir.into(),
        disk_free_mb_min: 0,
        ..Config::default()
    };
    config.timelines.flush_interval_ms = 5;
    config
}

impl Engine for EmbeddedEngine {
    async fn start() -> Option<Self> {
        let mut engine = Self {
            store: None,
            dir: directory(),
        };
        engine.open();
        Some(engine)
    }

    async fn start_alone() -> Option<Self> {
        Self::start().await
    }

    fn stores(&self) -> Stores {
        self.store.as_ref().unwrap().stores()
    }

    async fn peer(&mut self) -> Stores {
        self.stores()
    }

    async fn reopen(&mut self) {
        self.hand_over().await;
        self.open();
    }

    fn place(&self) -> String {
        self.dir.path().to_str().unwrap().to_owned()
    }

    async fn hand_over(&mut self) {
        self.store.take().unwrap().close().unwrap();
    }

    async fn open_at(place: &str) -> Stores {
        let store = Embedded::open(&config(place.as_ref())).unwrap();
        let stores = store.stores();
        std::mem::forget(store);
        stores
    }

    const WRITER: &str = "crash::writer_on_embedded";

    async fn kill_servers(&mut self) {}

    async fn recover(&mut self) {
        self.open();
    }

    async fn stop(self) {
        self.store.unwrap().close().unwrap();
    }
}
