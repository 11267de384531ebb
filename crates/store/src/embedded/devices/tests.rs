//! Tests of rows that an earlier version wrote, and of rows that can not be decoded.

use super::*;
use crate::{Devices, Metrics, embedded::testing::Store, encryption::Encryption};

fn web_push(n: u8) -> Address {
    Address::WebPush {
        endpoint: format!("https://push.example/{n}"),
        p256dh: vec![n; 65],
        auth: vec![n; 16],
    }
}

#[tokio::test]
async fn devices_that_can_not_be_read_are_counted_each_time() {
    let store = Store::new();
    let metrics = Metrics::default();
    let codec = Codec::new(&Encryption::default(), &metrics).unwrap();
    let devices = EmbeddedDevices::open(store.database(), 1 << 20, codec).unwrap();
    let mut batch = store.database().batch();
    batch.insert(&devices.tables.devices, 7_u32.to_be_bytes(), b"corrupt");
    store.database().commit(batch).await.unwrap();
    for reads in 1..=3 {
        assert!(devices.of(&[UserKey(7)]).await.is_err());
        assert_eq!(metrics.unreadable_devices().get(), reads);
    }
    devices
        .register(UserKey(8), web_push(1), Timestamp(1))
        .await
        .unwrap();
    assert_eq!(metrics.unreadable_devices().get(), 3);
}

fn open(store: &Store) -> EmbeddedDevices {
    EmbeddedDevices::open(store.database(), 1 << 20, Codec::plain()).unwrap()
}

#[tokio::test]
async fn a_row_of_an_earlier_version_is_read() {
    let store = Store::new();
    let devices = open(&store);
    // id 5, registered at 9, a webhook `https://a` with a secret of two bytes.
    let row = b"\x0a\x15\x08\x05\x10\x09\x22\x0f\x0a\x09https://a\x12\x02\x01\x02";
    let mut batch = store.database().batch();
    batch.insert(&devices.tables.devices, 7_u32.to_be_bytes(), row);
    store.database().commit(batch).await.unwrap();
    let [device] = &devices.of(&[UserKey(7)]).await.unwrap()[0][..] else {
        panic!("the user has one device")
    };
    assert_eq!((device.id, device.generation), (DeviceId(5), 0));
    assert_eq!((device.failing, device.disabled), (None, None));
    assert!(devices.unregister_current(device.registration()).await.unwrap());
}

#[tokio::test]
async fn a_corrupt_row_fails_only_the_changes_of_its_user() {
    let store = Store::new();
    let devices = open(&store);
    let mut batch = store.database().batch();
    batch.insert(&devices.tables.devices, 7_u32.to_be_bytes(), b"corrupt");
    store.database().commit(batch).await.unwrap();
    let register = |user| devices.register(UserKey(user), web_push(1), Timestamp(1));
    let (corrupt, good) = tokio::join!(register(7), register(8));
    assert_eq!(corrupt.unwrap_err().kind(), ErrorKind::Corrupt);
    good.unwrap();
}
