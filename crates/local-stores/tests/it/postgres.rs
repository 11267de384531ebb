use std::time::Duration;

use herald_local_stores::{Postgres, PostgresOptions, required};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _, Row as _};

async fn start() -> Option<Postgres> {
    required("a private PostgreSQL", Postgres::start().await)
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn count(url: &str) -> i64 {
    let mut connection = connect(url).await;
    connection
        .fetch_one("SELECT count(*) FROM t")
        .await
        .unwrap()
        .get(0)
}

#[tokio::test]
async fn what_was_committed_survives_a_kill_of_all_processes() {
    let Some(server) = start().await else { return };
    let url = server.database("survives").await.unwrap();
    let mut connection = connect(&url).await;
    connection.execute("CREATE TABLE t (n int)").await.unwrap();
    connection
        .execute("INSERT INTO t SELECT generate_series(1, 1000)")
        .await
        .unwrap();
    let first = server.pid();

    server.kill().await.unwrap();
    connection.execute("SELECT 1").await.unwrap_err();
    server.restart().await.unwrap();
    assert_ne!(server.pid(), first);
    assert_eq!(count(&url).await, 1000);

    // Without a kill before.
    server.restart().await.unwrap();
    assert_eq!(count(&url).await, 1000);
}

#[tokio::test]
async fn a_paused_server_answers_when_it_is_resumed() {
    let Some(server) = start().await else { return };
    let mut connection = connect(&server.url()).await;
    server.pause().await.unwrap();
    let mut query = std::pin::pin!(connection.execute("SELECT 1"));
    let early = tokio::time::timeout(Duration::from_millis(100), query.as_mut()).await;
    assert!(early.is_err(), "{early:?}");
    server.resume().unwrap();
    query.await.unwrap();
}

#[tokio::test]
async fn databases_are_apart_and_can_be_copied() {
    let Some(server) = start().await else { return };
    let template = server.database("template").await.unwrap();
    connect(&template)
        .await
        .execute("CREATE TABLE t (n int)")
        .await
        .unwrap();
    let copy = server.copy_of("template", "copy").await.unwrap();
    connect(&copy)
        .await
        .execute("INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    assert_eq!(count(&template).await, 0);
    assert_eq!(count(&copy).await, 1);
    server.drop_database("copy").await.unwrap();
    assert!(PgConnection::connect(&copy).await.is_err());
}

#[tokio::test]
async fn a_password_is_asked_for() {
    let options = PostgresOptions {
        password: Some("s3cret".into()),
        ..PostgresOptions::default()
    };
    let Some(server) = required("a private PostgreSQL", Postgres::start_with(options).await) else {
        return;
    };
    connect(&server.url()).await;
    assert!(
        PgConnection::connect(&server.url().replace("s3cret", "guess"))
            .await
            .is_err()
    );
}
