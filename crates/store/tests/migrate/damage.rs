//! Damaged rows, before and after they are moved.

use std::path::Path;

use herald_store::{ErrorKind, cluster::Cluster, migrate::compare};

use crate::{fill::fill_source, world::World};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn differences_are_found_before_the_move_is_finished() {
    let Some(world) = World::start().await else { return };
    fill_source(&world).await;
    for (change, named) in [
        (
            "UPDATE herald.users SET id = 'somebody' WHERE key = 17",
            "the row key 17 of the table users has other values",
        ),
        (
            "DELETE FROM herald.ledger_outcomes WHERE post = 30",
            "the row post 30, channel 0",
        ),
        (
            "INSERT INTO herald.preferences (user_key, preferences) VALUES (55, '')",
            "the table preferences has 2 rows instead of 1",
        ),
        (
            "UPDATE herald.devices AS of SET devices = other.devices FROM herald.devices AS other
            WHERE of.user_key = 7 AND other.user_key = 8",
            "user 7 has other devices",
        ),
        (
            "UPDATE herald.follow_edges SET until = NULL WHERE author = 5 AND follower = 9",
            "the row author 5, follower 9",
        ),
    ] {
        world.move_all().await;
        world.sql(change).await;
        let differs = loop {
            match world.migrate().await.unwrap_err() {
                locked if locked.kind() == ErrorKind::Locked => tokio::task::yield_now().await,
                other => break other,
            }
        };
        assert_eq!(differs.kind(), ErrorKind::Corrupt);
        assert!(differs.to_string().contains(named), "{differs}");
        assert!(Cluster::open(&world.to).await.is_err());
        world.sql("DROP SCHEMA herald CASCADE").await;
        std::fs::remove_file(world.dir.path().join("moved")).unwrap();
    }
    // Timelines that Redis has lost are made again.
    world.move_all().await;
    world.flush_redis().await;
    loop {
        match world.migrate().await {
            Err(locked) if locked.kind() == ErrorKind::Locked => tokio::task::yield_now().await,
            moved => break assert!(!moved.unwrap().was_finished),
        }
    }
    let source = world.open_moved_source().await;
    let cluster = Cluster::open(&world.to).await.unwrap();
    compare(&source.stores(), &cluster.stores(), None).await.unwrap();
    cluster.close().await;
}

/// Overwrites a row of the embedded store.
fn damage(dir: &Path, database: &str, keyspace: &str, key: &[u8]) -> Vec<u8> {
    let opened = fjall::Database::builder(dir.join(database)).open().unwrap();
    let rows = opened
        .keyspace(keyspace, fjall::KeyspaceCreateOptions::default)
        .unwrap();
    let before = rows.get(key).unwrap().unwrap().to_vec();
    rows.insert(key, b"\xff\xff\xffgarbage").unwrap();
    opened.persist(fjall::PersistMode::SyncAll).unwrap();
    before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_corrupt_row_is_named_and_nothing_after_it_is_moved() {
    let Some(world) = World::start().await else { return };
    fill_source(&world).await;
    // In the order in which they are moved: damage to what was moved already is a difference.
    for (database, keyspace, key, named) in [
        ("records", "user_ids", &7_u32.to_be_bytes()[..], "user 7"),
        ("records", "follow_counts", &6_u32.to_be_bytes(), "author 6"),
        ("records", "posts", &30_u64.to_be_bytes(), "post 30"),
        (
            "records",
            "devices",
            &8_u32.to_be_bytes(),
            "the devices of user 8",
        ),
        (
            "records",
            "ledger",
            &[&33_u64.to_be_bytes()[..], &[0, 0, 0, 0, 0]].concat(),
            "(post 33)",
        ),
        ("totals", "totals_posts", &30_u64.to_be_bytes(), "post 30"),
        (
            "dead_letters",
            "dead_letters",
            &5_u64.to_be_bytes(),
            "dead letter 5",
        ),
    ] {
        let before = damage(world.dir.path(), database, keyspace, key);
        let refused = loop {
            match world.migrate().await.unwrap_err() {
                locked if locked.kind() == ErrorKind::Locked => tokio::task::yield_now().await,
                other => break other,
            }
        };
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
        assert!(refused.to_string().contains(named), "{keyspace}: {refused}");
        // Mended, the move goes on.
        let opened = fjall::Database::builder(world.dir.path().join(database))
            .open()
            .unwrap();
        let rows = opened
            .keyspace(keyspace, fjall::KeyspaceCreateOptions::default)
            .unwrap();
        rows.insert(key, before).unwrap();
        opened.persist(fjall::PersistMode::SyncAll).unwrap();
    }
    world.migrate().await.unwrap();
    drop(world.postgres);
}
