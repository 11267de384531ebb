//! What is not moved.

use herald_model::UserId;
use herald_store::{
    ErrorKind,
    cluster::Cluster,
    embedded::{self, Embedded},
    migrate,
};

use crate::{DAY, fill::fill, world::World};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_can_not_be_moved_is_refused_without_a_trace() {
    let Some(world) = World::start().await else { return };
    let missing = world.migrate().await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Invalid);
    assert!(
        missing.to_string().contains("there is no embedded store"),
        "{missing}"
    );
    assert_eq!(std::fs::read_dir(world.dir.path()).unwrap().count(), 0);

    // A running source.
    let running = Embedded::open(&world.from()).unwrap();
    fill(&running.stores()).await;
    assert_eq!(world.migrate().await.unwrap_err().kind(), ErrorKind::Locked);
    running.close().unwrap();
    drop(running);

    // A database with data. The source can go on after that.
    let cluster = Cluster::open(&world.to).await.unwrap();
    let other = UserId::new("other").unwrap();
    cluster.stores().users.intern(&[other]).await.unwrap();
    cluster.close().await;
    let occupied = world.migrate().await.unwrap_err();
    assert_eq!(occupied.kind(), ErrorKind::Invalid);
    assert!(
        occupied.to_string().contains("herald.users has rows"),
        "{occupied}"
    );
    let source = Embedded::open(&world.from()).unwrap();
    source.close().unwrap();
    drop(source);
    world.sql("DROP SCHEMA herald CASCADE").await;

    // A running target.
    let cluster = Cluster::open(&world.to).await.unwrap();
    let leases = cluster.stores().leases;
    let lease = leases
        .acquire("retention", "another process", DAY)
        .await
        .unwrap()
        .unwrap();
    let running = world.migrate().await.unwrap_err();
    assert!(
        running.to_string().contains("Herald is running on it"),
        "{running}"
    );
    leases.release(&lease).await.unwrap();
    cluster.close().await;
    world.sql("DROP SCHEMA herald CASCADE").await;

    // The move of another store.
    world.migrate().await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let config = embedded::Config {
        data_dir: other.path().into(),
        ..world.from()
    };
    drop(Embedded::open(&config).unwrap());
    let refused = migrate::run(&config, &world.to, 50, &|_| {}).await.unwrap_err();
    assert!(
        refused.to_string().contains("another embedded store"),
        "{refused}"
    );
    drop(Embedded::open(&config).unwrap());
}
