use std::time::Duration;

use herald_local_stores::{Credentials, Redis, RedisCluster, RedisOptions, required};
use redis::Value;

async fn start(options: RedisOptions) -> Option<Redis> {
    required("a private Redis", Redis::start(options).await)
}

#[tokio::test]
async fn the_append_only_file_survives_a_restart_and_a_flush_does_not() {
    let Some(server) = start(RedisOptions::default()).await else {
        return;
    };
    server.command(&["SET", "k", "v"]).await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(server.text(&["GET", "k"]).await.unwrap(), "v");
    server.kill().await.unwrap();
    assert!(server.command(&["GET", "k"]).await.is_err());
    server.restart().await.unwrap();
    assert_eq!(server.text(&["GET", "k"]).await.unwrap(), "v");
    server.flush().await.unwrap();
    assert_eq!(server.command(&["GET", "k"]).await.unwrap(), Value::Nil);
}

#[tokio::test]
async fn a_paused_server_answers_when_it_is_resumed() {
    let Some(server) = start(RedisOptions::default()).await else {
        return;
    };
    server.pause().unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), server.command(&["PING"])).await;
    assert!(early.is_err(), "{early:?}");
    server.resume().unwrap();
    server.command(&["PING"]).await.unwrap();
}

#[tokio::test]
async fn only_the_user_is_let_in() {
    let options = RedisOptions {
        credentials: Some(Credentials {
            user: "herald".into(),
            password: "s3cret".into(),
        }),
        ..RedisOptions::default()
    };
    let Some(server) = start(options).await else {
        return;
    };
    server.command(&["SET", "k", "v"]).await.unwrap();
    let nobody = redis::Client::open(format!("redis://127.0.0.1:{}", server.port())).unwrap();
    let mut connection = nobody.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("GET")
        .arg("k")
        .query_async::<Value>(&mut connection)
        .await
        .unwrap_err();
}

#[tokio::test]
async fn a_replica_is_promoted() {
    let Some(first) = start(RedisOptions::default()).await else {
        return;
    };
    first.command(&["SET", "k", "v"]).await.unwrap();
    let replica = RedisOptions {
        replica_of: Some(first.port()),
        ..RedisOptions::default()
    };
    let replica = start(replica).await.unwrap();
    while replica
        .command(&["GET", "k"])
        .await
        .ok()
        .is_none_or(|value| value == Value::Nil)
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(replica.command(&["SET", "k", "w"]).await.is_err());
    first.kill().await.unwrap();
    replica.promote().await.unwrap();
    replica.command(&["SET", "k", "w"]).await.unwrap();
}

#[tokio::test]
async fn a_cluster_of_three_has_all_slots() {
    let Some(cluster) = required("a private Redis cluster", RedisCluster::start(3).await) else {
        return;
    };
    let client = redis::cluster::ClusterClient::new(cluster.urls()).unwrap();
    let mut connection = client.get_async_connection().await.unwrap();
    for key in 0..100 {
        redis::cmd("SET")
            .arg(key)
            .arg(key)
            .query_async::<()>(&mut connection)
            .await
            .unwrap();
    }
    for node in cluster.nodes() {
        assert_ne!(node.command(&["DBSIZE"]).await.unwrap(), Value::Int(0));
    }
    cluster.flush().await.unwrap();
}
