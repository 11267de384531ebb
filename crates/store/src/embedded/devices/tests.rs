//! Tests of the devices.

use std::time::Duration;

use herald_model::{DisabledReason, PreviousSecret};

use super::*;
use crate::{DEVICES_PER_USER_MAX, Devices, SECRET_OVERLAP, embedded::testing::Store};

fn webhook(url: &str, secret: u8) -> Address {
    Address::Webhook {
        url: url.into(),
        secret: vec![secret; 32],
    }
}

fn web_push(n: u8) -> Address {
    Address::WebPush {
        endpoint: format!("https://push.example/{n}"),
        p256dh: vec![n; 65],
        auth: vec![n; 16],
    }
}

fn open(store: &Store) -> EmbeddedDevices {
    EmbeddedDevices::open(store.database(), 1 << 20).unwrap()
}

#[tokio::test]
async fn registering_a_url_again_keeps_its_id_and_time() {
    let store = Store::new();
    let devices = open(&store);
    let user = UserKey(7);
    let first = devices
        .register(user, webhook("https://a", 1), Timestamp(10))
        .await
        .unwrap();
    let other = devices.register(user, web_push(2), Timestamp(20)).await.unwrap();
    assert_eq!(
        devices.of(&[user, UserKey(8)]).await.unwrap(),
        [vec![first.clone(), other.clone()], vec![]]
    );
    let again = devices
        .register(user, webhook("https://a", 9), Timestamp(30))
        .await
        .unwrap();
    assert_eq!(
        again,
        Device {
            address: webhook("https://a", 9),
            generation: 2,
            previous_secret: Some(PreviousSecret {
                secret: vec![1; 32],
                expires_at: Timestamp(30).plus(SECRET_OVERLAP),
            }),
            ..first
        }
    );
    assert_eq!(devices.of(&[user]).await.unwrap(), [[again, other]]);
}

#[tokio::test]
async fn ids_are_not_reused_after_a_restart() {
    let mut store = Store::new();
    let devices = open(&store);
    let a = devices
        .register(UserKey(1), web_push(1), Timestamp(1))
        .await
        .unwrap();
    let b = devices
        .register(UserKey(2), web_push(1), Timestamp(1))
        .await
        .unwrap();
    assert_ne!(a.id, b.id);
    assert!(!devices.unregister(UserKey(1), b.id).await.unwrap());
    assert!(devices.unregister(UserKey(2), b.id).await.unwrap());
    assert!(!devices.unregister(UserKey(2), b.id).await.unwrap());
    assert_eq!(devices.of(&[UserKey(2)]).await.unwrap(), [[]]);

    drop(devices);
    store.reopen();
    let devices = open(&store);
    assert_eq!(
        devices.of(&[UserKey(1), UserKey(2)]).await.unwrap(),
        [vec![a], vec![]]
    );
    let c = devices
        .register(UserKey(2), web_push(1), Timestamp(1))
        .await
        .unwrap();
    assert!(c.id > b.id);
}

#[tokio::test]
async fn a_device_above_the_limit_is_refused() {
    let store = Store::new();
    let devices = open(&store);
    let registered = futures::future::join_all(
        (0..=DEVICES_PER_USER_MAX)
            .map(|n| devices.register(UserKey(1), webhook(&format!("https://{n}"), 1), Timestamp(1))),
    )
    .await;
    let refused: Vec<_> = registered.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].kind(), ErrorKind::LimitExceeded);
    assert_eq!(
        devices.of(&[UserKey(1)]).await.unwrap()[0].len(),
        DEVICES_PER_USER_MAX
    );
}

fn secret_of(device: &Device) -> (u8, Option<u8>) {
    let Address::Webhook { secret, .. } = &device.address else {
        panic!("{device:?} is no webhook")
    };
    let previous = device.previous_secret.as_ref();
    (secret[0], previous.map(|previous| previous.secret[0]))
}

#[tokio::test]
async fn one_endpoint_is_one_device_however_it_is_spelled() {
    let store = Store::new();
    let devices = open(&store);
    let user = UserKey(7);
    // Rows of earlier versions have the URL as the client wrote it.
    let first = devices
        .register(user, webhook("HTTPS://Push.Example.com:443/%61", 1), Timestamp(1))
        .await
        .unwrap();
    let again = devices
        .register(user, webhook("https://push.example.com/a", 1), Timestamp(2))
        .await
        .unwrap();
    assert_eq!(again.id, first.id);
    assert_eq!(again.address.url(), "https://push.example.com/a");
    assert_eq!(devices.of(&[user]).await.unwrap(), [[again]]);
}

#[tokio::test]
async fn a_webhook_that_is_registered_again_keeps_its_secret() {
    let store = Store::new();
    let devices = open(&store);
    let user = UserKey(7);
    let register =
        |secret| devices.register_webhook(user, "https://a".into(), vec![secret; 32], Timestamp(1));
    let (first, second) = tokio::join!(register(1), register(2));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.id, second.id);
    // Concurrent registrations get the same secret, so that both callers can verify pushes.
    assert_eq!(secret_of(&first), secret_of(&second));
    assert_eq!(secret_of(&register(3).await.unwrap()).1, None);
    // The address changes its kind: the secret of the webhook is of no use.
    let browser = Address::WebPush {
        endpoint: "https://a".into(),
        p256dh: vec![1; 65],
        auth: vec![1; 16],
    };
    let browser = devices.register(user, browser, Timestamp(2)).await.unwrap();
    assert_eq!((browser.id, browser.previous_secret), (first.id, None));
}

#[tokio::test]
async fn a_rotated_secret_is_kept_until_it_expires() {
    let mut store = Store::new();
    let devices = open(&store);
    let user = UserKey(7);
    let hook = devices
        .register(user, webhook("https://a", 1), Timestamp(1))
        .await
        .unwrap();
    let browser = devices.register(user, web_push(1), Timestamp(1)).await.unwrap();
    let rotate = async |devices: &EmbeddedDevices, id, secret: u8| {
        let secret = vec![secret; 32];
        devices
            .rotate_secret(user, id, secret, Timestamp(99))
            .await
            .unwrap()
    };
    let rotated = rotate(&devices, hook.id, 2).await.unwrap();
    assert_eq!(secret_of(&rotated), (2, Some(1)));
    assert_eq!(rotated.previous_secret.unwrap().expires_at, Timestamp(99));
    // Repeating the call must not forget the first secret.
    assert_eq!(
        secret_of(&rotate(&devices, hook.id, 2).await.unwrap()),
        (2, Some(1))
    );
    assert_eq!(rotate(&devices, browser.id, 3).await, None);
    assert_eq!(rotate(&devices, DeviceId(99), 3).await, None);
    // A push in flight still belongs to the device.
    assert_eq!(
        rotate(&devices, hook.id, 3).await.unwrap().generation,
        hook.generation
    );

    drop(devices);
    store.reopen();
    let devices = open(&store);
    assert_eq!(secret_of(&devices.of(&[user]).await.unwrap()[0][0]), (3, Some(2)));
}

#[tokio::test]
async fn a_late_result_does_not_change_a_device_that_was_renewed_meanwhile() {
    let store = Store::new();
    let devices = open(&store);
    let user = UserKey(7);
    let disabled = Disabled {
        reason: DisabledReason::Gone,
        at: Timestamp(5),
    };
    let first = devices
        .register(user, webhook("https://a", 1), Timestamp(1))
        .await
        .unwrap();
    let renewed = devices
        .register(user, webhook("https://a", 1), Timestamp(2))
        .await
        .unwrap();
    let old = first.registration();
    assert!(!devices.unregister_current(old).await.unwrap());
    assert!(!devices.disable(old, disabled).await.unwrap());
    assert_eq!(devices.record_failure(old, Timestamp(5)).await.unwrap(), None);
    assert_eq!(devices.of(&[user]).await.unwrap(), [[renewed.clone()]]);

    // Enabling renews a device too.
    let enabled = devices.enable(user, first.id).await.unwrap().unwrap();
    assert!(!devices.disable(renewed.registration(), disabled).await.unwrap());
    assert!(!devices.unregister_current(renewed.registration()).await.unwrap());
    assert!(devices.unregister_current(enabled.registration()).await.unwrap());
    assert_eq!(devices.of(&[user]).await.unwrap(), [[]]);
}

#[tokio::test]
async fn a_disabled_device_is_listed_until_it_is_enabled_or_registered_again() {
    let mut store = Store::new();
    let devices = open(&store);
    let user = UserKey(7);
    let hook = devices
        .register(user, webhook("https://a", 1), Timestamp(1))
        .await
        .unwrap();
    let failing = Disabled {
        reason: DisabledReason::Failing,
        at: Timestamp(5),
    };
    let gone = Disabled {
        reason: DisabledReason::Gone,
        at: Timestamp(6),
    };
    assert!(devices.disable(hook.registration(), failing).await.unwrap());
    assert!(!devices.disable(hook.registration(), gone).await.unwrap());
    drop(devices);
    store.reopen();
    let devices = open(&store);
    assert_eq!(devices.of(&[user]).await.unwrap()[0][0].disabled, Some(failing));

    let enabled = devices.enable(user, hook.id).await.unwrap().unwrap();
    assert_eq!(enabled.disabled, None);
    assert!(devices.disable(enabled.registration(), gone).await.unwrap());
    let again = devices
        .register(user, webhook("https://a", 1), Timestamp(9))
        .await
        .unwrap();
    assert_eq!((again.disabled, again.id), (None, hook.id));
    assert_eq!(devices.enable(user, DeviceId(99)).await.unwrap(), None);
    assert_eq!(devices.enable(UserKey(8), hook.id).await.unwrap(), None);
}

#[tokio::test]
async fn a_failing_streak_counts_days_with_failures_and_ends_with_a_success() {
    let mut store = Store::new();
    let devices = open(&store);
    let user = UserKey(7);
    let at = |hours| Timestamp(0).plus(Duration::from_hours(hours));
    let hook = devices
        .register(user, webhook("https://a", 1), at(0))
        .await
        .unwrap();
    let registration = hook.registration();
    let fail = async |devices: &EmbeddedDevices, hours| {
        let streak = devices
            .record_failure(registration, at(hours))
            .await
            .unwrap()
            .unwrap();
        (streak.since, streak.days)
    };
    assert_eq!(fail(&devices, 1).await, (at(1), 1));
    assert_eq!(fail(&devices, 24).await, (at(1), 1));
    assert_eq!(fail(&devices, 25).await, (at(1), 2));
    drop(devices);
    store.reopen();
    let devices = open(&store);
    assert_eq!(fail(&devices, 90).await, (at(1), 3));
    devices.record_success(registration).await.unwrap();
    assert_eq!(devices.of(&[user]).await.unwrap(), [[hook.clone()]]);
    assert_eq!(fail(&devices, 91).await, (at(91), 1));
}

#[tokio::test]
async fn web_push_devices_belong_to_a_vapid_key() {
    let mut store = Store::new();
    let devices = open(&store);
    let hook = devices
        .register(UserKey(1), webhook("https://a", 1), Timestamp(1))
        .await
        .unwrap();
    assert!(!devices.has_web_push().await.unwrap());
    assert_eq!(devices.vapid_key().await.unwrap(), None);
    for user in 1..=3 {
        devices
            .register(UserKey(user), web_push(1), Timestamp(1))
            .await
            .unwrap();
        devices
            .register(UserKey(user), web_push(2), Timestamp(1))
            .await
            .unwrap();
    }
    devices.set_vapid_key(&[7; 65]).await.unwrap();
    drop(devices);
    store.reopen();
    let devices = open(&store);
    assert_eq!(devices.vapid_key().await.unwrap(), Some(vec![7; 65]));
    assert!(devices.has_web_push().await.unwrap());
    assert_eq!(devices.unregister_web_push().await.unwrap(), 6);
    assert!(!devices.has_web_push().await.unwrap());
    let users = [UserKey(1), UserKey(2)];
    assert_eq!(devices.of(&users).await.unwrap(), [vec![hook], vec![]]);
    // The counter of ids is another row.
    let next = devices
        .register(UserKey(1), web_push(1), Timestamp(1))
        .await
        .unwrap();
    assert_eq!(next.id, DeviceId(8));
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
