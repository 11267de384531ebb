//! Tests of what only this engine has: migrations, failures of the server and concurrent transactions. The contract of
//! the traits is tested by the conformance suite.

mod dead_letters;
mod failures;
mod follows;
mod ledger;
mod migrations;
mod pool;
mod records;
mod retention;
mod storage_keys;
mod totals;
mod users_caches;

use std::sync::atomic::{AtomicU32, Ordering};

use herald_local_stores::{Postgres as Server, required};
use tokio::sync::OnceCell;

use super::Postgres;
use crate::cluster::{PostgresConfig, SecretUrl};

/// One server for all tests of this process.
static SERVER: OnceCell<Option<Server>> = OnceCell::const_new();

/// The shared server; `None` on a machine without PostgreSQL.
async fn server() -> Option<&'static Server> {
    SERVER
        .get_or_init(async || required("the tests of the PostgreSQL engine", Server::start().await))
        .await
        .as_ref()
}

/// An empty database on the shared server.
async fn database() -> Option<SecretUrl> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    Some(SecretUrl::new(server().await?.database(&name).await.unwrap()))
}

/// Connections to a migrated database.
async fn open() -> Option<Postgres> {
    let url = database().await?;
    let postgres = Postgres::connect(&url, &PostgresConfig::default()).await.unwrap();
    postgres.migrate().await.unwrap();
    Some(postgres)
}

/// Connects once more, as another process does.
async fn connect(url: &SecretUrl) -> Postgres {
    Postgres::connect(url, &PostgresConfig::default()).await.unwrap()
}

async fn run(postgres: &Postgres, statements: &'static str) {
    sqlx::raw_sql(statements).execute(postgres.pool()).await.unwrap();
}

/// Ends all leases, as their time does.
async fn end_leases(postgres: &Postgres) {
    run(postgres, "UPDATE herald.leases SET ends_at = clock_timestamp()").await;
}
