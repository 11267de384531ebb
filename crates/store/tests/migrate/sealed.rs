//! Devices are decrypted with the key of the embedded store, and encrypted with that of the database.

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use herald_model::UserKey;
use herald_secret::Secret;
use herald_store::{ErrorKind, cluster::Cluster, encryption::Encryption, migrate::compare};
use sqlx::Connection as _;

use crate::{fill::fill_source, world::World};

fn key(n: u8) -> Encryption {
    Encryption {
        key: Secret::new(BASE64.encode([n; 32])),
        ..Encryption::default()
    }
}

/// Whether PostgreSQL has an endpoint in a row of devices.
async fn has_endpoint(world: &World) -> bool {
    const SQL: &str = "SELECT bool_or(position('hook.example'::bytea IN devices) > 0) FROM herald.devices";
    let mut connection = sqlx::PgConnection::connect(world.to.url.expose()).await.unwrap();
    sqlx::query_scalar(SQL).fetch_one(&mut connection).await.unwrap()
}

/// Moves a store from one encryption to another, with an interruption, and compares both.
async fn check(from: Encryption, to: Encryption) {
    let Some(mut world) = World::start().await else {
        return;
    };
    (world.from, world.to.encryption) = (from, to.clone());
    fill_source(&world).await;
    // After the devices, before the end.
    world.move_all().await;
    let moved = loop {
        match world.migrate().await {
            Err(locked) if locked.kind() == ErrorKind::Locked => tokio::task::yield_now().await,
            moved => break moved.unwrap(),
        }
    };
    assert!(!moved.was_finished);
    assert_eq!(has_endpoint(&world).await, to.key.is_empty());
    let cluster = Cluster::open(&world.to).await.unwrap();
    assert_eq!(cluster.storage_keys().in_use().await.unwrap(), to.key_ids());
    let hooks = cluster.stores().devices.of(&[UserKey(8)]).await.unwrap();
    assert_eq!(hooks[0].len(), 1);
    let source = world.open_moved_source().await;
    compare(&source.stores(), &cluster.stores(), None).await.unwrap();
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn plain_devices_are_encrypted_with_the_key_of_the_database() {
    check(Encryption::default(), key(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn encrypted_devices_are_encrypted_with_another_key() {
    check(key(1), key(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn encrypted_devices_can_be_moved_to_a_database_without_a_key() {
    check(key(1), Encryption::default()).await;
}
