//! The records of the cluster engine, in PostgreSQL.
//!
//! # Assumptions
//!
//! - All tables are in the schema `herald`, and each statement names it, whatever the `search_path` of the role is. One
//!   database holds one Herald.
//! - Transactions are `READ COMMITTED`. A statement sees what was committed when it began, so a transaction that decides
//!   on a row locks it first, in ascending order of keys. Where a call needs one moment for all it reads, it is one
//!   statement.
//! - Statements, waits for locks and calls have time-outs. An aborted transaction (a deadlock, a conflict of
//!   serialization) is repeated a few times; so is a call that lost its connection, because repeating a write does not
//!   change its result.
//! - Migrations and rotations of the storage key use an advisory lock each. `LISTEN` and `NOTIFY` are not used.

mod api_keys;
pub(crate) mod batch;
pub(crate) mod dead_letters;
mod devices;
mod erasures;
mod error;
mod follows;
mod health;
pub(crate) mod keys;
mod leases;
pub(crate) mod ledger;
mod migrations;
mod moved;
mod observed_pool;
mod pool;
mod posts;
mod preferences;
mod removal;
mod retention;
mod storage_keys;
mod stream_marks;
#[cfg(test)]
mod tests;
mod totals;
mod users;
mod users_caches;

pub(crate) use api_keys::PostgresApiKeys;
pub(crate) use dead_letters::PostgresDeadLetters;
pub(crate) use devices::PostgresDevices;
pub(crate) use erasures::PostgresErasures;
pub(crate) use error::{Attempt, Failure};
pub(crate) use follows::PostgresFollows;
pub(crate) use leases::PostgresLeases;
pub(crate) use ledger::PostgresLedger;
pub use migrations::Migrated;
pub(crate) use observed_pool::ObservedPool;
pub(crate) use pool::{Postgres, Transaction};
pub(crate) use posts::PostgresPosts;
pub(crate) use preferences::PostgresPreferences;
pub(crate) use retention::PostgresRetention;
pub(crate) use stream_marks::PostgresStreamMarks;
pub(crate) use totals::PostgresTotals;
pub(crate) use users::PostgresUsers;
