//! A real nats-server as a child process, for `herald up` and for tests.
//!
//! ```no_run
//! # async fn example() -> Result<(), herald_local_nats::Error> {
//! use herald_local_nats::{Config, Server};
//!
//! // Uses a free port and a temporary directory. Dropping the server stops it and removes the directory.
//! let mut server = Server::start(Config::default()).await?;
//! println!("{}", server.client_url());
//! server.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Binary::locate`] finds a nats-server, or fetches one if the machine has none. [`Server`] runs it.
//!
//! # When the child ends
//!
//! - The [`Server`] is dropped: the child is killed and reaped before `drop` returns.
//! - Ctrl-C at the terminal: the child does not receive it, because it has its own process group. The parent drains,
//!   then stops the child.
//! - The parent is killed or crashes: on Linux the kernel also kills the child, if util-linux's `setpriv` is on the
//!   PATH. (`setpriv` sets the parent-death signal; this crate would need unsafe code for it.) Otherwise the child runs
//!   until the next start in the same directory, which finds it by the pid file, checks by its command line that it
//!   serves this directory, and stops it.
//!
//! The parent holds a lock on the directory while it runs. A second [`Server::start`] in the directory is refused with
//! [`Error::InUse`], so that it can't stop the server of a running parent.
//!
//! # What is absent on purpose
//!
//! - Listening on other addresses than loopback: the server has no authentication.
//! - Clusters: `herald up` and the tests need one server. A cluster would be several [`Server`]s with each other's
//!   routes in [`Config::extra`].
//! - Windows: a child can't be stopped gracefully there.

mod binary;
mod command;
mod config;
mod error;
mod fetch;
mod fetcher;
mod leftover;
mod locate;
mod password;
mod ready;
mod running;
mod search;
mod server;
mod version;

pub use binary::Binary;
pub use config::{Config, SyncInterval};
pub use error::{Attempt, Error, Result};
pub use fetcher::{Fetcher, OnProgress, Progress};
pub use locate::{BinarySource, Locate};
pub use running::Running;
pub use server::Server;
pub use version::Version;
