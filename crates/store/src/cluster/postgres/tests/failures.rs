use std::time::{Duration, Instant};

use herald_local_stores::{Postgres as Server, PostgresOptions, required};
use herald_model::{UserId, UserKey};

use super::{connect, open, server};
use crate::{
    ErrorKind, Users,
    cluster::{
        PostgresConfig, SecretUrl,
        postgres::{Postgres, PostgresUsers},
    },
};

fn impatient() -> PostgresConfig {
    PostgresConfig {
        acquire_timeout_ms: 500,
        statement_timeout_ms: 500,
        lock_timeout_ms: 200,
        connections_max: 4,
        ..PostgresConfig::default()
    }
}

fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

#[tokio::test]
async fn errors_have_no_credentials() {
    let options = PostgresOptions {
        password: Some("right-hunter2".into()),
        ..PostgresOptions::default()
    };
    let started = Server::start_with(options).await;
    let Some(server) = required("errors_have_no_credentials", started) else {
        return;
    };
    let right = server.url();
    connect(&right.as_str().into()).await.close().await;
    let wrong = right.replace("right-hunter2", "wrong-hunter2");
    for url in [
        wrong.clone(),
        right.replace(&format!(":{}/", server.port()), ":1/"),
        right.replace("/postgres", "/nowhere"),
        format!("{right}?sslmode=require"),
    ] {
        let error = Postgres::connect(&SecretUrl::new(&url), &impatient())
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    let error = Postgres::connect(&SecretUrl::new(wrong), &impatient())
        .await
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("check the user and password"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_after_a_crash_and_a_freeze_of_the_server() {
    let Some(server) = required("calls_go_on_after_a_crash", Server::start().await) else {
        return;
    };
    let url = SecretUrl::new(server.url());
    let postgres = Postgres::connect(&url, &impatient()).await.unwrap();
    postgres.migrate().await.unwrap();
    let users = PostgresUsers::new(&postgres, 0);
    assert_eq!(users.intern(&[user("a")]).await.unwrap(), [UserKey(1)]);

    server.kill().await.unwrap();
    let error = users.find(&[user("a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    server.restart().await.unwrap();
    assert_eq!(users.find(&[user("a")]).await.unwrap(), [Some(UserKey(1))]);

    server.pause().await.unwrap();
    let began = Instant::now();
    let ids = [user("a"), user("b")];
    let calls = (0..8).map(|_| users.intern(&ids));
    for result in futures::future::join_all(calls).await {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    // Each call ends, also the ones that found no connection.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    server.resume().unwrap();
    // The connections of the calls that timed out are closed after their test has timed out too.
    let mut keys = users.intern(&ids).await;
    for _ in 0..10 {
        if keys.is_ok() {
            break;
        }
        keys = users.intern(&ids).await;
    }
    assert_eq!(keys.unwrap(), [UserKey(1), UserKey(2)]);
}

#[tokio::test]
async fn a_call_survives_the_end_of_its_connections() {
    let Some(postgres) = open().await else { return };
    let users = PostgresUsers::new(&postgres, 0);
    for n in 1..=20 {
        // Ends the idle connections of the pool, as a restart or a fail-over does.
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .execute(postgres.pool())
        .await
        .unwrap();
        let keys = users.intern(&[user(&n.to_string())]).await.unwrap();
        assert_eq!(keys, [UserKey(n)]);
    }
}

#[tokio::test]
async fn waiting_for_a_lock_and_slow_statements_time_out() {
    let Some(postgres) = open().await else { return };
    let url = SecretUrl::new(
        server().await.unwrap().url_of(
            &sqlx::query_scalar::<_, String>("SELECT current_database()::text")
                .fetch_one(postgres.pool())
                .await
                .unwrap(),
        ),
    );
    let impatient = Postgres::connect(&url, &impatient()).await.unwrap();
    let mut holder = postgres.begin().await.unwrap();
    sqlx::query("SELECT last FROM herald.counters WHERE name = 'users' FOR UPDATE")
        .execute(&mut *holder)
        .await
        .unwrap();
    let users = PostgresUsers::new(&impatient, 0);
    let error = users.intern(&[user("a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("lock_timeout_ms"), "{error}");
    holder.rollback().await.unwrap();

    let error = impatient
        .call("sleep", || async {
            sqlx::query("SELECT pg_sleep(30)")
                .execute(impatient.pool())
                .await?;
            Ok(())
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("statement_timeout_ms"), "{error}");
    assert_eq!(users.intern(&[user("a")]).await.unwrap(), [UserKey(1)]);
}
