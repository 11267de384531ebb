use futures::future::join_all;

use super::{connect, database, run, server};
use crate::{
    ErrorKind,
    cluster::{SecretUrl, postgres::Postgres},
};

/// The sentence with which the store refuses to migrate.
async fn refusal(url: &SecretUrl) -> (ErrorKind, String) {
    let error = connect(url).await.migrate().await.unwrap_err();
    (error.kind(), error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_that_start_at_once_apply_each_migration_once() {
    let Some(url) = database().await else { return };
    let migrated = join_all((0..8).map(|_| async { connect(&url).await.migrate().await.unwrap() })).await;
    let mut applied: Vec<_> = migrated.iter().flat_map(|m| m.applied.clone()).collect();
    applied.sort_unstable();
    assert!(applied.contains(&"0001_records"));
    assert!(applied.is_sorted_by(|a, b| a < b), "applied twice: {applied:?}");
    let again = connect(&url).await.migrate().await.unwrap();
    assert_eq!((again.applied.len(), again.version), (0, migrated[0].version));
}

#[tokio::test]
async fn a_schema_of_a_newer_version_is_refused() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    postgres.migrate().await.unwrap();
    run(
        &postgres,
        "INSERT INTO herald.migrations (version, name) VALUES (9999, '9999_newer')",
    )
    .await;
    let (kind, message) = refusal(&url).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("use the newer version of Herald"), "{message}");
}

#[tokio::test]
async fn a_schema_of_another_build_is_refused() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    postgres.migrate().await.unwrap();
    run(
        &postgres,
        "UPDATE herald.migrations SET name = '0001_other' WHERE version = 1",
    )
    .await;
    let (kind, message) = refusal(&url).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("another build of Herald"), "{message}");
}

#[tokio::test]
async fn a_schema_with_tables_of_others_is_refused_and_not_changed() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    run(
        &postgres,
        "CREATE SCHEMA herald; CREATE TABLE herald.users (name text)",
    )
    .await;
    let (kind, message) = refusal(&url).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("use another database"), "{message}");
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'herald'")
        .fetch_one(postgres.pool())
        .await
        .unwrap();
    assert_eq!(tables, 1);
}

#[tokio::test]
async fn tables_of_other_applications_in_other_schemas_do_not_matter() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    run(&postgres, "CREATE TABLE users (name text)").await;
    postgres.migrate().await.unwrap();
}

#[tokio::test]
async fn a_read_only_database_is_refused() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    postgres.migrate().await.unwrap();
    run(
        &postgres,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); \
         END $$",
    )
    .await;
    let (kind, message) = refusal(&url).await;
    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(message.contains("read-only"), "{message}");
    let error = connect(&url).await.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_database_without_unicode_is_refused() {
    let Some(url) = database().await else { return };
    run(
        &connect(&url).await,
        "CREATE DATABASE test_ascii ENCODING 'SQL_ASCII' TEMPLATE template0",
    )
    .await;
    let Some(server) = server().await else { return };
    let (kind, message) = refusal(&SecretUrl::new(server.url_of("test_ascii"))).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("needs UTF8"), "{message}");
}

#[tokio::test]
async fn a_process_waits_while_another_one_migrates() {
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    // Holds the lock that a migrating process takes.
    let mut other = postgres.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(super::super::migrations::LOCK_KEY)
        .execute(&mut *other)
        .await
        .unwrap();
    let waiting = tokio::spawn({
        let postgres = postgres.clone();
        async move { postgres.migrate().await }
    });
    while !is_waiting(&postgres).await {
        tokio::task::yield_now().await;
    }
    other.rollback().await.unwrap();
    assert!(!waiting.await.unwrap().unwrap().applied.is_empty());
}

async fn is_waiting(postgres: &Postgres) -> bool {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)")
        .fetch_one(postgres.pool())
        .await
        .unwrap()
}
