//! What a test needs of an engine.

use std::sync::Arc;

use herald_model::UserKey;
use herald_store::{
    Result, Stores,
    encryption::{Encryption, StorageKeys},
};

use crate::corrupt::Row;

/// An engine with a store of its own, which is empty at first and gone when the engine is stopped.
pub trait Engine: Sized {
    /// Opens an empty store. `None`, after a line that says so, if this machine lacks the programs.
    async fn start() -> Option<Self>;

    /// Opens an empty store on servers that no other test uses.
    async fn start_alone() -> Option<Self>;

    /// Opens an empty store with a storage key.
    async fn start_sealed() -> Option<Self> {
        let mut engine = Self::start().await?;
        engine.reopen_with(crate::encryption::key(1)).await.unwrap();
        Some(engine)
    }

    /// The stores.
    fn stores(&self) -> Stores;

    /// The stores as another process has them. An engine for one process returns the same ones.
    async fn peer(&mut self) -> Stores;

    /// Closes the store and opens it again.
    async fn reopen(&mut self);

    /// Closes the store and opens it again with other storage keys, as a process that uses devices does. After an error
    /// it is closed, and must be opened so again.
    async fn reopen_with(&mut self, encryption: Encryption) -> Result<()>;

    /// Closes the store and opens it again with a retention of posts.
    async fn reopen_with_retention(&mut self, post_keep_days: u64);

    /// The keys that devices are encrypted with.
    fn storage_keys(&self) -> Arc<dyn StorageKeys>;

    /// All that the store has on its disk of devices, and perhaps more.
    async fn raw_devices(&mut self) -> Vec<u8>;

    /// Reads the row with the devices of a user.
    async fn devices_row(&mut self, user: UserKey) -> Vec<u8>;

    /// Replaces the row with the devices of a user.
    async fn set_devices_row(&mut self, user: UserKey, row: &[u8]);

    /// Where the store is, for [`open_at`](Self::open_at) in a child process.
    fn place(&self) -> String;

    /// Closes the store here, so that a child process can open it.
    async fn hand_over(&mut self);

    /// Opens the store of another process. It stays open until this process ends.
    async fn open_at(place: &str) -> Stores;

    /// The ignored test that writes to the store of [`place`](Self::place) in a child process.
    const WRITER: &str;

    /// Kills the servers of the engine, if it has some, while the child process writes.
    async fn kill_servers(&mut self);

    /// Starts the killed servers again and opens the store.
    async fn recover(&mut self);

    /// Overwrites a row with [`GARBAGE`](crate::corrupt::GARBAGE).
    async fn damage(&mut self, row: Row);

    /// Closes the store.
    async fn stop(self);
}
