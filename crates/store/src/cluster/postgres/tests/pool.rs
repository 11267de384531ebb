//! What is observed of the pool.

use std::time::{Duration, Instant};

use herald_metrics::Shared;

use super::database;
use crate::{
    Metrics,
    cluster::{PostgresConfig, postgres::Postgres},
};

/// The calls that waited for a connection, and how long all of them did.
fn waits(shared: &Shared) -> (u64, f64) {
    let text = shared.open_metrics();
    let value = |name: &str| {
        let prefix = format!("herald_store_pool_wait_seconds_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
        line.unwrap().to_owned()
    };
    (value("count").parse().unwrap(), value("sum").parse().unwrap())
}

#[tokio::test]
async fn the_first_statement_of_a_transaction_is_no_wait_for_a_connection() {
    const STATEMENT: Duration = Duration::from_millis(300);
    let Some(url) = database().await else { return };
    let (metrics, shared) = (Metrics::default(), Shared::new());
    shared.register(|registry| metrics.register_cluster(registry));
    let config = PostgresConfig::default();
    let postgres = Postgres::connect_with(&url, &config, metrics).await.unwrap();
    let started = Instant::now();
    let begun = postgres.pool().begin_with("BEGIN; SELECT pg_sleep(0.3)").await;
    let passed = started.elapsed();
    begun.unwrap().rollback().await.unwrap();
    let (count, seconds) = waits(&shared);
    assert_eq!(count, 1);
    let others = passed.checked_sub(STATEMENT).unwrap().as_secs_f64();
    assert!(seconds <= others, "{seconds} of {passed:?}");
    postgres.begin().await.unwrap().rollback().await.unwrap();
    assert_eq!(waits(&shared).0, 2);
    postgres.close().await;
}
