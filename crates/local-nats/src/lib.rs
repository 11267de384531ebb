//! A real nats-server as a child process, for `herald up` and for tests.
//!
//! ```no_run
//! # async fn example() -> Result<(), herald_local_nats::Error> {
//! use herald_local_nats::{Config, Server};
//!
//! // A free port, a temporary directory, gone when dropped.
//! let mut server = Server::start(Config::default()).await?;
//! println!("{}", server.client_url());
//! server.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Binary::locate`] says where the nats-server comes from, and fetches one if the machine has none; [`Server`] runs
//! it.
//!
//! # What becomes of the child when its parent goes
//!
//! - The [`Server`] is dropped: the child is killed and reaped before `drop` returns.
//! - Ctrl-C at the terminal: nothing, the child has a process group of its own. The parent drains, then stops it.
//! - The parent is killed, or crashes: on Linux the kernel kills the child too, if util-linux's `setpriv` is on the
//!   PATH (it sets the parent-death signal, which this crate can't do itself without unsafe code). Where it isn't, the
//!   child stays until the next start in the same directory, which finds it by the pid file, makes sure by its
//!   command line that it serves this very directory, and ends it.
//!
//! A lock in the directory, held while the parent lives, keeps that from happening to the server of a parent that is
//! well: a second [`Server::start`] there is refused with [`Error::InUse`].
//!
//! # What is absent on purpose
//!
//! - Listening on other addresses than the loopback one: the server has no authentication.
//! - Clusters: one server answers all that `herald up` and the tests ask today. A cluster would be several
//!   [`Server`]s whose [`Config::extra`] names each other's routes.
//! - Windows: there is no graceful stop of a child there.

mod binary;
mod command;
mod config;
mod error;
mod fetch;
mod fetcher;
mod leftover;
mod locate;
mod log;
mod process;
mod ready;
mod search;
mod server;
mod version;

pub use binary::Binary;
pub use config::{Config, SyncInterval};
pub use error::{Attempt, Error, Result};
pub use fetcher::{Fetcher, OnProgress, Progress};
pub use locate::{BinarySource, Locate};
pub use server::Server;
pub use version::Version;
