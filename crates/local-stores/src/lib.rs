//! Private PostgreSQL and Redis or Valkey servers as child processes, for tests and `herald bench`.
//!
//! ```no_run
//! # async fn example() -> Result<(), herald_local_stores::Error> {
//! use herald_local_stores::{Postgres, Redis, RedisOptions};
//!
//! let postgres = Postgres::start().await?;
//! let records = postgres.database("orders").await?;
//! let redis = Redis::start(RedisOptions::default()).await?;
//! println!("{records} {}", redis.url());
//! # Ok(())
//! # }
//! ```
//!
//! Each server has a free port on loopback and a temporary directory. Dropping a server ends its processes, by their own
//! ids, and removes the directory. When this process dies without dropping it, as it does with a server in a `static`,
//! the kernel ends the server (`setpriv --pdeathsig`) and a waiting shell removes the directory.
//!
//! [`required`] is what tests call: on a machine without the programs it says what is skipped, or fails with
//! `TESTS_REQUIRE_SERVERS=1`. [`until`] waits for what a server or a store does by itself.
//!
//! # What is absent on purpose
//!
//! - Servers for production: there is no TLS, and by default no password and no fsync of PostgreSQL.
//! - Downloading the programs: every distribution has them, and [`Error::Missing`] says what to install.

mod directory;
mod error;
mod port;
mod postgres;
mod postgres_run;
mod program;
mod ps;
mod redis;
mod redis_cluster;
mod require;
mod start;
mod wait;

pub use error::{Error, Result};
pub use postgres::{Occupied, Postgres, PostgresOptions};
pub use redis::{Credentials, Redis, RedisOptions, RedisTls};
pub use redis_cluster::RedisCluster;
pub use require::required;
pub use wait::until;
