//! What a test needs of an engine.

use herald_store::Stores;

use crate::corrupt::Row;

/// An engine with a store of its own, which is empty at first and gone when the engine is stopped.
pub trait Engine: Sized {
    /// Opens an empty store. `None`, after a line that says so, if this machine lacks the programs.
    async fn start() -> Option<Self>;

    /// Opens an empty store on servers that no other test uses.
    async fn start_alone() -> Option<Self>;

    /// The stores.
    fn stores(&self) -> Stores;

    /// The stores as another process has them. An engine for one process returns the same ones.
    async fn peer(&mut self) -> Stores;

    /// Closes the store and opens it again.
    async fn reopen(&mut self);

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
