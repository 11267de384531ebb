//! Clusters, passwords, and servers that are refused.

use herald_local_stores::{Credentials, RedisCluster};

use super::*;
use crate::ErrorKind;

async fn refusal(options: RedisOptions) -> Option<crate::Error> {
    let redis = required("the tests of timelines in Redis", Redis::start(options).await)?;
    let bed = bed_with(redis).await?;
    let leases = Arc::new(PostgresLeases::new(bed.postgres.clone()));
    let opened = ClusterTimelines::open(&config(&bed.redis.url()), 30, &bed.postgres, leases, "test").await;
    Some(opened.err().expect("the server is refused"))
}

#[tokio::test]
async fn a_server_that_evicts_keys_is_refused() {
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let options = RedisOptions {
            maxmemory_policy: policy.into(),
            ..RedisOptions::default()
        };
        let Some(error) = refusal(options).await else {
            return;
        };
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(
            error.to_string().contains("set maxmemory-policy to noeviction"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_replica_is_refused() {
    let Some(bed) = bed().await else { return };
    let options = RedisOptions {
        replica_of: Some(bed.redis.port()),
        ..RedisOptions::default()
    };
    let Some(error) = refusal(options).await else {
        return;
    };
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("replica"), "{error}");
}

#[tokio::test]
async fn a_full_server_is_full() {
    let options = RedisOptions {
        maxmemory_bytes: Some(3_000_000),
        ..RedisOptions::default()
    };
    let redis = Redis::start(options).await;
    let Some(redis) = required("the tests of timelines in Redis", redis) else {
        return;
    };
    let Some(bed) = bed_with(redis).await else { return };
    let timelines = bed.open().await;
    let mut outcome = Ok(());
    for post in 1..=200 {
        let delivered = timelines
            .deliver(PostId(post << 30), recipients((1..=1_000_000).step_by(64)))
            .await;
        if let Err(error) = delivered {
            outcome = Err(error);
            break;
        }
    }
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    assert!(error.to_string().contains("maxmemory"), "{error}");
}

#[tokio::test]
async fn a_password_is_used_and_never_shown() {
    let options = RedisOptions {
        credentials: Some(Credentials {
            user: "herald".into(),
            password: "hunter2".into(),
        }),
        ..RedisOptions::default()
    };
    let redis = Redis::start(options).await;
    let Some(redis) = required("the tests of timelines in Redis", redis) else {
        return;
    };
    let Some(bed) = bed_with(redis).await else { return };
    let config = config(&bed.redis.url());
    assert!(!format!("{config:?}").contains("hunter2"));
    let timelines = bed.open_with(config.clone()).await;
    deliver(&timelines, 1, &recipients([1])).await;
    let wrong = TimelinesConfig {
        url: SecretUrl::new(bed.redis.url().replace("hunter2", "hunter3")),
        ..config
    };
    let leases = Arc::new(PostgresLeases::new(bed.postgres.clone()));
    let refused = ClusterTimelines::open(&wrong, 30, &bed.postgres, leases, "test").await;
    let error = refused.err().expect("the password is wrong");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!format!("{error:?}").contains("hunter3"), "{error:?}");
    assert!(
        error.to_string().contains("check the user and password"),
        "{error}"
    );
}

#[tokio::test]
async fn two_installations_can_share_a_server() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    deliver(&timelines, 1, &recipients([1])).await;
    let other = database().await.unwrap();
    let leases = Arc::new(PostgresLeases::new(other.clone()));
    let other = ClusterTimelines::open(&config(&bed.redis.url()), 30, &other, leases, "test")
        .await
        .unwrap();
    assert!(newest(&other, 1).await.is_empty());
    assert_eq!(newest(&timelines, 1).await, [1]);
}

#[tokio::test]
async fn a_write_waits_for_replicas() {
    let Some(bed) = bed().await else { return };
    let config = TimelinesConfig {
        replicas_min: 1,
        ..config(&bed.redis.url())
    };
    let timelines = bed.open_with(config).await;
    let delivered = timelines.deliver(PostId(1), recipients([1])).await.unwrap();
    let error = delivered.durable.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("replicas"), "{error}");
    let options = RedisOptions {
        replica_of: Some(bed.redis.port()),
        ..RedisOptions::default()
    };
    let _replica = Redis::start(options).await.unwrap();
    wait_until("the replica has the writes", || async {
        match timelines.deliver(PostId(2), recipients([1])).await {
            Ok(delivered) => delivered.durable.await.is_ok(),
            Err(_) => false,
        }
    })
    .await;
}

/// Deliveries, merges, reads, a flush of one node and rebuilds on a cluster; then a slot moves.
#[tokio::test]
async fn a_cluster_is_detected_and_used() {
    let Some(cluster) = required("the tests of timelines in Redis", RedisCluster::start(3).await) else {
        return;
    };
    let Some(bed) = bed().await else { return };
    let config = TimelinesConfig {
        merge_blocks: 4,
        ..config(&cluster.urls()[0])
    };
    let timelines = bed.open_with(config).await;
    assert!(matches!(timelines.view.writer, Server::Cluster(_)));
    let users: Vec<u32> = (1..=1_000).step_by(37).collect();
    for user in &users {
        bed.follow(*user, 9, true).await;
    }
    for post in 1..=30 {
        bed.post(&timelines, post, 9).await;
    }
    let expected: Vec<u64> = (1..=30).rev().collect();
    for user in &users {
        assert_eq!(newest(&timelines, *user).await, expected, "user {user}");
    }
    let entries = timelines
        .read(&users.iter().map(|user| UserKey(*user)).collect::<Vec<_>>())
        .await
        .unwrap();
    assert!(
        entries
            .iter()
            .all(|entries| entries.complete && entries.posts.len() == 30)
    );
    for node in cluster.nodes() {
        let size: i64 = redis::from_redis_value(node.command(&["DBSIZE"]).await.unwrap()).unwrap();
        assert!(size > 3, "a node has {size} keys");
    }
    cluster.nodes()[1].flush().await.unwrap();
    for user in &users {
        assert_eq!(
            newest(&timelines, *user).await,
            expected,
            "user {user} after a flush"
        );
    }
    let shards = timelines.view.state.shards().await.unwrap();
    assert_eq!(shards.len(), 3);
    move_slot(&timelines, &cluster, users[3]).await;
    deliver(&timelines, 31, &recipients(users.iter().copied())).await;
    let mut expected = expected;
    expected.insert(0, 31);
    for user in &users {
        assert_eq!(
            newest(&timelines, *user).await,
            expected,
            "user {user} after a move"
        );
    }
}

/// The replica of a killed node takes its slots over.
#[tokio::test]
async fn a_fail_over_inside_a_cluster_loses_nothing() {
    let cluster = RedisCluster::start_with_replicas(3).await;
    let Some(cluster) = required("the tests of timelines in Redis", cluster) else {
        return;
    };
    let Some(bed) = bed().await else { return };
    let timelines = bed.open_with(config(&cluster.urls()[0])).await;
    let users: Vec<u32> = (1..=1_000).step_by(37).collect();
    for user in &users {
        bed.follow(*user, 9, true).await;
    }
    for post in 1..=10 {
        bed.post(&timelines, post, 9).await;
    }
    wait_until("all shards are seen", || async {
        timelines.view.state.shards().await.unwrap().len() == 3
    })
    .await;
    cluster.nodes()[1].kill().await.unwrap();
    // What an operator does when a majority can't vote; an election would take a node time-out longer.
    let replica = &cluster.replicas()[1];
    replica
        .command(&["CLUSTER", "FAILOVER", "TAKEOVER"])
        .await
        .unwrap();
    let everybody = recipients(users.iter().copied());
    wait_until("deliveries succeed", || async {
        match timelines.deliver(PostId(11), everybody.clone()).await {
            Ok(delivered) => delivered.durable.await.is_ok(),
            Err(_) => false,
        }
    })
    .await;
    bed.wait_for_repairs(&timelines).await;
    let losses: i64 = sqlx::query_scalar("SELECT count(*) FROM herald.timelines_losses")
        .fetch_one(bed.postgres.pool())
        .await
        .unwrap();
    assert!(losses > 0, "another primary can lack writes");
    let expected: Vec<u64> = (1..=11).rev().collect();
    for user in &users {
        assert_eq!(newest(&timelines, *user).await, expected, "user {user}");
    }
}

/// Moves the slot of a user's bucket to another node.
async fn move_slot(timelines: &ClusterTimelines, cluster: &RedisCluster, user: u32) {
    let keys = timelines.view.keys.bucket(pair::group(UserKey(user)));
    let slot = keys.slot.to_string();
    let mut ids = Vec::new();
    let mut from = 0;
    for (index, node) in cluster.nodes().iter().enumerate() {
        ids.push(node.text(&["CLUSTER", "MYID"]).await.unwrap());
        let found = node
            .command(&["CLUSTER", "COUNTKEYSINSLOT", &slot])
            .await
            .unwrap();
        if found != redis::Value::Int(0) {
            from = index;
        }
    }
    let to = (from + 1) % 3;
    let (source, target) = (&cluster.nodes()[from], &cluster.nodes()[to]);
    target
        .command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids[from]])
        .await
        .unwrap();
    source
        .command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids[to]])
        .await
        .unwrap();
    for key in [&keys.tail, &keys.body] {
        let port = target.port().to_string();
        source
            .command(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"])
            .await
            .unwrap();
    }
    // The owners first, as `redis-cli --cluster reshard` does.
    let other = &cluster.nodes()[(from + 2) % 3];
    for node in [target, source, other] {
        node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &ids[to]])
            .await
            .unwrap();
    }
}
