//! The embedded engine.

use std::sync::Arc;

use herald_model::{ChunkId, PostId, UserKey};
use herald_store::{
    Result, Stores,
    embedded::{Config, Embedded},
    encryption::{Encryption, StorageKeys},
};
use tempfile::TempDir;

use crate::{
    corrupt::{GARBAGE, Row},
    engine::Engine,
};

/// The embedded engine in a temporary directory.
pub struct EmbeddedEngine {
    // Before the directory, because it is closed first.
    store: Option<Embedded>,
    encryption: Encryption,
    post_keep_days: Option<u64>,
    dir: TempDir,
}

impl EmbeddedEngine {
    fn open(&mut self) {
        self.try_open().unwrap();
    }

    fn try_open(&mut self) -> Result<()> {
        let config = Config {
            encryption: self.encryption.clone(),
            post_keep_days: self.post_keep_days,
            ..config(self.dir.path())
        };
        self.store = Some(Embedded::open(&config)?);
        Ok(())
    }

    /// Uses the closed database of records.
    async fn with_records<T>(&mut self, use_it: impl FnOnce(&fjall::Database) -> T) -> T {
        self.hand_over().await;
        let database = fjall::Database::builder(self.dir.path().join("records"))
            .open()
            .unwrap();
        let used = use_it(&database);
        database.persist(fjall::PersistMode::SyncAll).unwrap();
        drop(database);
        self.open();
        used
    }
}

/// Kinds of the ledger's rows, and the push channel, in keys.
const OUTCOME: u8 = 1;
const CHUNK: u8 = 2;
const PUSH: u8 = 1;

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
            encryption: Encryption::default(),
            post_keep_days: None,
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

    async fn reopen_with(&mut self, encryption: Encryption) -> Result<()> {
        if let Some(store) = self.store.take() {
            store.close().unwrap();
        }
        self.encryption = encryption;
        self.try_open()
    }

    async fn reopen_with_retention(&mut self, post_keep_days: u64) {
        self.post_keep_days = Some(post_keep_days);
        self.reopen().await;
    }

    fn storage_keys(&self) -> Arc<dyn StorageKeys> {
        self.store.as_ref().unwrap().storage_keys()
    }

    async fn raw_devices(&mut self) -> Vec<u8> {
        let mut raw = Vec::new();
        let mut dirs = vec![self.dir.path().join("records")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    raw.extend(std::fs::read(path).unwrap());
                }
            }
        }
        raw
    }

    async fn devices_row(&mut self, user: UserKey) -> Vec<u8> {
        let read = |database: &fjall::Database| {
            let rows = database.keyspace("devices", fjall::KeyspaceCreateOptions::default);
            rows.unwrap().get(user.0.to_be_bytes()).unwrap().unwrap().to_vec()
        };
        self.with_records(read).await
    }

    async fn set_devices_row(&mut self, user: UserKey, row: &[u8]) {
        let write = |database: &fjall::Database| {
            let rows = database.keyspace("devices", fjall::KeyspaceCreateOptions::default);
            rows.unwrap().insert(user.0.to_be_bytes(), row).unwrap();
        };
        self.with_records(write).await;
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

    async fn damage(&mut self, row: Row) {
        self.hand_over().await;
        {
            let database = if matches!(row, Row::DeadLetter(_)) {
                "dead_letters"
            } else {
                "records"
            };
            let database = fjall::Database::builder(self.dir.path().join(database))
                .open()
                .unwrap();
            let keyspace = |name: &str| {
                database
                    .keyspace(name, fjall::KeyspaceCreateOptions::default)
                    .unwrap()
            };
            // post, kind of the row, channel, chunk; see `embedded/ledger/row.rs`.
            let chunk_key = |post: PostId, kind: u8, chunk: ChunkId| {
                [&post.0.to_be_bytes()[..], &[kind, PUSH], &chunk.0.to_be_bytes()].concat()
            };
            let (rows, key) = match row {
                Row::Devices(user) => (keyspace("devices"), user.0.to_be_bytes().to_vec()),
                Row::Preferences(user) => (keyspace("preferences"), user.0.to_be_bytes().to_vec()),
                Row::PushChunk(post, chunk) => (keyspace("ledger"), chunk_key(post, CHUNK, chunk)),
                Row::PushOutcome(post, chunk) => (keyspace("ledger"), chunk_key(post, OUTCOME, chunk)),
                Row::Post(post) => (keyspace("posts"), post.0.to_be_bytes().to_vec()),
                Row::DeadLetter(id) => (keyspace("dead_letters"), id.0.to_be_bytes().to_vec()),
            };
            assert!(rows.get(&key).unwrap().is_some(), "{row:?} is in the store");
            rows.insert(&key, GARBAGE).unwrap();
            database.persist(fjall::PersistMode::SyncAll).unwrap();
        }
        self.open();
    }

    async fn stop(self) {
        self.store.unwrap().close().unwrap();
    }
}
