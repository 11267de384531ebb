//! Encryption at rest: what is stored, who can read it, and the rotation of its key.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use herald_model::{Address, Device, UserKey, time::Timestamp};
use herald_store::{
    Devices, ErrorKind,
    encryption::{Encryption, rotate},
};

use crate::engine::Engine;

/// The encryption with one of several keys.
pub fn key(n: u8) -> Encryption {
    let mut encryption = Encryption::default();
    let key = herald_secret::Secret::new(BASE64.encode([n; 32]));
    encryption.key = key;
    encryption
}

/// The encryption with a key after another one.
fn after(n: u8, previous: u8) -> Encryption {
    let mut encryption = key(n);
    encryption.add_previous(&key(previous).key).unwrap();
    encryption
}

fn web_push(n: u32) -> Address {
    Address::WebPush {
        endpoint: format!("https://push.example/endpoint-{n}"),
        p256dh: b"the public key of the browser".to_vec(),
        auth: b"the auth secret!".to_vec(),
    }
}

fn webhook(n: u32, secret: &str) -> Address {
    Address::Webhook {
        url: format!("https://hook.example/endpoint-{n}"),
        secret: secret.into(),
    }
}

async fn register(devices: &dyn Devices, user: u32, address: Address) -> Device {
    devices
        .register(UserKey(user), address, Timestamp(1))
        .await
        .unwrap()
}

/// Registers two devices of a user, one with a previous secret.
async fn fill(devices: &dyn Devices, user: u32) {
    register(devices, user, web_push(user)).await;
    register(devices, user, webhook(user, "the previous secret")).await;
    register(devices, user, webhook(user, "the current secret!")).await;
}

async fn of(devices: &dyn Devices, user: u32) -> Vec<Device> {
    devices.of(&[UserKey(user)]).await.unwrap().remove(0)
}

const SECRETS: [&str; 6] = [
    "https://push.example/endpoint-7",
    "https://hook.example/endpoint-7",
    "the public key of the browser",
    "the auth secret!",
    "the previous secret",
    "the current secret!",
];

fn has(raw: &[u8], secret: &str) -> bool {
    raw.windows(secret.len()).any(|part| part == secret.as_bytes())
}

pub async fn what_devices_hold_is_not_in_the_store<E: Engine>(engine: &mut E) {
    fill(&*engine.stores().devices, 7).await;
    let expected = of(&*engine.stores().devices, 7).await;
    assert_eq!(expected.len(), 2);
    assert!(expected[1].previous_secret.is_some());
    engine.reopen().await;
    assert_eq!(of(&*engine.stores().devices, 7).await, expected);
    let raw = engine.raw_devices().await;
    let in_use = engine.storage_keys().in_use().await.unwrap();
    assert_eq!(in_use, key(1).key_ids());
    assert!(has(&raw, &format!("storage_key/{}", in_use[0])));
    for secret in SECRETS {
        assert!(!has(&raw, secret), "{secret} is in the store");
    }
    // The control: without a key they are.
    let Some(mut plain) = E::start().await else { return };
    fill(&*plain.stores().devices, 7).await;
    plain.reopen().await;
    let raw = plain.raw_devices().await;
    for secret in SECRETS {
        assert!(has(&raw, secret), "{secret} is not found");
    }
    plain.stop().await;
}

pub async fn a_record_of_another_device_or_with_another_bit_fails_only_its_user<E: Engine>(engine: &mut E) {
    for user in [7, 8, 9] {
        fill(&*engine.stores().devices, user).await;
    }
    // User 8 would get the pushes of user 7.
    let row = engine.devices_row(UserKey(7)).await;
    engine.set_devices_row(UserKey(8), &row).await;
    let mut flipped = engine.devices_row(UserKey(9)).await;
    let last = flipped.len() - 3;
    flipped[last] ^= 0x10;
    engine.set_devices_row(UserKey(9), &flipped).await;
    let devices = engine.stores().devices;
    for user in [8, 9] {
        let refused = devices.of(&[UserKey(user)]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
        assert!(!refused.to_string().contains("example"), "{refused}");
        let refused = devices.register(UserKey(user), web_push(5), Timestamp(1)).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt);
    }
    assert_eq!(of(&*devices, 7).await.len(), 2);
    fill(&*devices, 10).await;
    // What needs no key goes on, and the removal of all Web Push devices leaves out what can't be read.
    assert!(devices.has_web_push().await.unwrap());
    assert_eq!(devices.unregister_web_push().await.unwrap(), 2);
    // An erasure needs no key either.
    for user in [8, 9] {
        assert_eq!(devices.erase(UserKey(user)).await.unwrap(), 2);
        assert_eq!(of(&*devices, user).await, []);
    }
    assert_eq!(of(&*devices, 7).await.len(), 1);
}

pub async fn a_store_is_refused_without_its_key<E: Engine>(engine: &mut E) {
    fill(&*engine.stores().devices, 7).await;
    let expected = of(&*engine.stores().devices, 7).await;
    for wrong in [Encryption::default(), key(2)] {
        let refused = engine.reopen_with(wrong).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        let id = key(1).key_id().unwrap().to_string();
        let text = refused.to_string();
        assert!(
            text.contains(&id) && text.contains("store.encryption.key"),
            "{text}"
        );
    }
    for right in [after(2, 1), key(1)] {
        if let Err(error) = engine.reopen_with(right).await {
            panic!("{error}");
        }
        assert_eq!(of(&*engine.stores().devices, 7).await, expected);
    }
}

pub async fn plain_devices_stay_readable_and_are_encrypted_when_they_are_written<E: Engine>(engine: &mut E) {
    // The engine of these tests has a key: without one nothing was written yet, so it can be left out.
    engine.reopen_with(Encryption::default()).await.unwrap();
    for user in [7, 8] {
        fill(&*engine.stores().devices, user).await;
    }
    let before = of(&*engine.stores().devices, 8).await;
    engine.reopen_with(key(1)).await.unwrap();
    let devices = engine.stores().devices;
    assert_eq!(of(&*devices, 8).await, before);
    assert!(engine.storage_keys().in_use().await.unwrap().is_empty());
    // The same endpoint again: the device of before, whose row is encrypted now.
    let again = register(&*devices, 8, web_push(8)).await;
    assert_eq!(
        (again.id, again.generation),
        (before[0].id, before[0].generation + 1)
    );
    drop(devices);
    assert!(has(&engine.devices_row(UserKey(7)).await, "the current secret!"));
    assert!(!has(&engine.devices_row(UserKey(8)).await, "the current secret!"));

    let rotated = rotate(&*engine.storage_keys(), &|_| ()).await.unwrap();
    assert_eq!(
        (rotated.users, rotated.resealed, rotated.forgotten),
        (2, 1, vec![])
    );
    assert!(!has(&engine.devices_row(UserKey(7)).await, "the current secret!"));
    assert_eq!(of(&*engine.stores().devices, 7).await.len(), 2);
    assert!(engine.reopen_with(Encryption::default()).await.is_err());
    engine.reopen_with(key(1)).await.unwrap();
}

pub async fn a_rotation_during_changes_loses_none_and_ends_the_need_for_the_old_key<E: Engine>(
    engine: &mut E,
) {
    const USERS: u32 = 60;
    for user in 1..=USERS {
        register(&*engine.stores().devices, user, webhook(user, "the first secret")).await;
    }
    engine.reopen_with(after(2, 1)).await.unwrap();
    let (devices, keys) = (engine.stores().devices, engine.storage_keys());
    let done = Arc::new(AtomicBool::new(false));
    // Registers and removes devices of all users until the rotation has ended, and once more.
    let changing = {
        let (devices, done) = (devices.clone(), done.clone());
        tokio::spawn(async move {
            let mut rounds = 0;
            loop {
                let is_last = done.load(Ordering::SeqCst);
                for user in 1..=USERS {
                    register(&*devices, user, webhook(user, &format!("secret {rounds}"))).await;
                    let added = register(&*devices, user, web_push(rounds)).await;
                    if !is_last {
                        assert!(devices.unregister(UserKey(user), added.id).await.unwrap());
                    }
                }
                if is_last {
                    return rounds;
                }
                rounds += 1;
            }
        })
    };
    let rotated = rotate(&*keys, &|_| ()).await.unwrap();
    done.store(true, Ordering::SeqCst);
    let rounds = changing.await.unwrap();
    assert_eq!(rotated.key, key(2).key_id().unwrap());
    assert_eq!(rotated.forgotten, key(1).key_ids());
    assert_eq!(keys.in_use().await.unwrap(), key(2).key_ids());
    let again = rotate(&*keys, &|_| ()).await.unwrap();
    assert_eq!((again.users, again.resealed), (u64::from(USERS), 0));
    drop((devices, keys));

    engine.reopen_with(key(2)).await.unwrap();
    for user in 1..=USERS {
        let found: Vec<Address> = of(&*engine.stores().devices, user)
            .await
            .into_iter()
            .map(|device| device.address)
            .collect();
        assert_eq!(
            found,
            [webhook(user, &format!("secret {rounds}")), web_push(rounds)]
        );
    }
}

pub async fn a_rotation_reports_what_can_not_be_decrypted_and_keeps_its_key<E: Engine>(engine: &mut E) {
    for user in [7, 8] {
        fill(&*engine.stores().devices, user).await;
    }
    let (good, row) = (
        engine.devices_row(UserKey(8)).await,
        engine.devices_row(UserKey(7)).await,
    );
    engine.set_devices_row(UserKey(8), &row).await;
    engine.reopen_with(after(2, 1)).await.unwrap();
    let failed = rotate(&*engine.storage_keys(), &|_| ()).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Corrupt);
    assert!(failed.to_string().contains("the keys 8 can't"), "{failed}");
    assert_eq!(engine.storage_keys().in_use().await.unwrap().len(), 2);
    // Repaired, it goes on.
    engine.set_devices_row(UserKey(8), &good).await;
    let rotated = rotate(&*engine.storage_keys(), &|_| ()).await.unwrap();
    assert_eq!((rotated.users, rotated.resealed), (2, 1));
    engine.reopen_with(key(2)).await.unwrap();
    assert_eq!(of(&*engine.stores().devices, 8).await.len(), 2);
}

/// An installation goes on without a key that is lost: what is encrypted with it is removed, and nothing else.
pub async fn devices_of_a_lost_key_are_removed_and_all_others_stay<E: Engine>(engine: &mut E) {
    let losing = |mut encryption: Encryption, lost: u8| {
        encryption.lost_keys = key(lost).key_id().unwrap().to_string();
        encryption
    };
    for user in [7, 8] {
        fill(&*engine.stores().devices, user).await;
    }
    let old = engine.devices_row(UserKey(8)).await;
    engine.reopen_with(after(2, 1)).await.unwrap();
    for user in [8, 9] {
        register(&*engine.stores().devices, user, web_push(10)).await;
    }
    // User 8 has devices of each key.
    let new = engine.devices_row(UserKey(8)).await;
    let expected = [
        of(&*engine.stores().devices, 8).await,
        of(&*engine.stores().devices, 9).await,
    ];
    engine
        .set_devices_row(UserKey(8), &[old.clone(), new.clone()].concat())
        .await;

    // A key that the process has is not lost, only the one that is named is, and there must be one to go on with.
    for refused in [
        losing(after(2, 1), 1),
        losing(key(2), 3),
        key(2),
        losing(Encryption::default(), 1),
    ] {
        let refused = engine.reopen_with(refused).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
        assert!(
            refused.to_string().contains("lost_keys") || refused.to_string().contains("no storage key"),
            "{refused}"
        );
    }
    engine.reopen_with(after(2, 1)).await.unwrap();
    assert_eq!(of(&*engine.stores().devices, 7).await.len(), 2);

    for _ in 0..2 {
        engine.reopen_with(losing(key(2), 1)).await.unwrap();
        assert_eq!(engine.storage_keys().in_use().await.unwrap(), key(2).key_ids());
        assert!(of(&*engine.stores().devices, 7).await.is_empty());
        for (user, expected) in [8, 9].into_iter().zip(&expected) {
            assert_eq!(of(&*engine.stores().devices, user).await, *expected);
        }
        assert_eq!(engine.devices_row(UserKey(8)).await, new);
    }
    engine.reopen_with(key(2)).await.unwrap();
    fill(&*engine.stores().devices, 7).await;
    assert_eq!(engine.stores().devices.unregister_web_push().await.unwrap(), 4);
    assert!(!engine.stores().devices.has_web_push().await.unwrap());
}
