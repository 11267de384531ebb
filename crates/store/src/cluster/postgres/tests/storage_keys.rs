//! Processes with different storage keys on one database.

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use herald_model::{Address, UserKey, time::Timestamp};
use herald_secret::Secret;

use super::open;
use crate::{
    Devices, ErrorKind, Metrics,
    cluster::postgres::{Postgres, PostgresDevices},
    embedded::devices::Codec,
    encryption::{Encryption, StorageKeys, rotate},
};

/// The devices of a process that writes with the first key, and reads with the others. Key 0: it writes without one.
fn process(postgres: &Postgres, keys: &[u8]) -> PostgresDevices {
    let mut encryption = Encryption::default();
    for (index, n) in keys.iter().enumerate() {
        let key = Secret::new(BASE64.encode([*n; 32]));
        match index {
            0 if *n == 0 => {}
            0 => encryption.key = key,
            _ => encryption.add_previous(&key).unwrap(),
        }
    }
    PostgresDevices::new(postgres, Codec::new(&encryption, &Metrics::default()).unwrap())
}

async fn register(devices: &PostgresDevices, user: u32, n: u32) -> crate::Result<herald_model::Device> {
    let address = Address::Webhook {
        url: format!("https://example.com/{n}"),
        secret: vec![1; 24],
    };
    devices.register(UserKey(user), address, Timestamp(1)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_the_begin_of_a_rotation_nobody_writes_with_another_key() {
    let Some(postgres) = open().await else { return };
    let (plain, reader, old, new) = (
        process(&postgres, &[]),
        process(&postgres, &[0, 1, 2]),
        process(&postgres, &[1, 2]),
        process(&postgres, &[2, 1]),
    );
    // Processes with both keys change the devices of one user in turns.
    register(&plain, 7, 0).await.unwrap();
    register(&old, 7, 1).await.unwrap();
    register(&new, 7, 2).await.unwrap();
    register(&old, 7, 3).await.unwrap();
    // One that reads both and does not encrypt yet may go on until a rotation.
    register(&reader, 6, 1).await.unwrap();
    reader.check().await.unwrap();
    assert_eq!(new.of(&[UserKey(7)]).await.unwrap()[0].len(), 4);
    assert_eq!(new.in_use().await.unwrap().len(), 2);
    for devices in [&old, &new] {
        devices.check().await.unwrap();
    }
    assert_eq!(plain.check().await.unwrap_err().kind(), ErrorKind::Invalid);

    let (key, users) = new.begin_rotation().await.unwrap();
    assert_eq!(users, 2);
    for devices in [&plain, &reader, &old] {
        let refused = register(devices, 8, 1).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
        assert!(refused.to_string().contains(&key.to_string()), "{refused}");
        assert_eq!(devices.check().await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    // Reads go on, and so does the writer with the new key.
    assert_eq!(old.of(&[UserKey(7)]).await.unwrap()[0].len(), 4);
    register(&new, 8, 1).await.unwrap();
    // The same again, from its begin, as after an interruption.
    let rotated = rotate(&new, &|_| ()).await.unwrap();
    assert_eq!(
        (rotated.users, rotated.resealed, rotated.forgotten.len()),
        (3, 2, 1)
    );
    assert_eq!(
        process(&postgres, &[2]).of(&[UserKey(7)]).await.unwrap()[0].len(),
        4
    );
    // A process that was left over must not bring its key back, but a rotation can.
    assert_eq!(
        register(&old, 9, 1).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    let back = rotate(&old, &|_| ()).await.unwrap();
    assert_eq!((back.resealed, back.forgotten), (3, vec![key]));
    register(&old, 9, 1).await.unwrap();
    old.check().await.unwrap();
}

/// A registration that has begun with the old key ends before the rotation begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rotation_waits_for_writes_that_have_begun() {
    let Some(postgres) = open().await else { return };
    let new = process(&postgres, &[2, 1]);
    let mut writer = postgres.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock_shared($1)")
        .bind(crate::cluster::postgres::storage_keys::LOCK)
        .execute(&mut *writer)
        .await
        .unwrap();
    let beginning = tokio::spawn(async move { new.begin_rotation().await });
    while !super::migrations::is_waiting(&postgres).await {
        assert!(!beginning.is_finished(), "the rotation has not waited");
    }
    // Other writers have their turn after it.
    writer.commit().await.unwrap();
    beginning.await.unwrap().unwrap();
}
