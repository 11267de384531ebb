//! Devices and their registrations.

use std::{slice, time::Duration};

use herald_model::{
    Address, Device, DeviceId, Disabled, DisabledReason, PreviousSecret, UserKey, time::Timestamp,
};
use herald_store::{DEVICES_PER_USER_MAX, Devices, ErrorKind, SECRET_OVERLAP};

use crate::engine::Engine;

const USER: UserKey = UserKey(7);

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

async fn register(devices: &dyn Devices, user: u32, address: Address, at: i64) -> Device {
    devices
        .register(UserKey(user), address, Timestamp(at))
        .await
        .unwrap()
}

/// The devices of [`USER`].
async fn listed(devices: &dyn Devices) -> Vec<Device> {
    devices.of(&[USER]).await.unwrap().remove(0)
}

fn secret_of(device: &Device) -> (u8, Option<u8>) {
    let Address::Webhook { secret, .. } = &device.address else {
        panic!("{device:?} is no webhook")
    };
    let previous = device.previous_secret.as_ref();
    (secret[0], previous.map(|previous| previous.secret[0]))
}

pub async fn registering_a_url_again_keeps_its_id_and_time<E: Engine>(engine: &mut E) {
    let devices = engine.stores().devices;
    let first = register(&*devices, 7, webhook("https://a", 1), 10).await;
    let other = register(&*devices, 7, web_push(2), 20).await;
    let of = devices.of(&[USER, UserKey(8)]).await.unwrap();
    assert_eq!(of, [vec![first.clone(), other.clone()], vec![]]);
    let again = register(&*devices, 7, webhook("https://a", 9), 30).await;
    let expected = Device {
        address: webhook("https://a", 9),
        generation: 2,
        previous_secret: Some(PreviousSecret {
            secret: vec![1; 32],
            expires_at: Timestamp(30).plus(SECRET_OVERLAP),
        }),
        ..first
    };
    assert_eq!(again, expected);
    assert_eq!(listed(&*devices).await, [again.clone(), other.clone()]);
    assert_eq!(listed(&*engine.peer().await.devices).await, [again, other]);
}

pub async fn ids_are_not_reused_after_a_restart<E: Engine>(engine: &mut E) {
    let devices = engine.stores().devices;
    let a = register(&*devices, 1, web_push(1), 1).await;
    let b = register(&*devices, 2, web_push(1), 1).await;
    assert_ne!(a.id, b.id);
    assert!(!devices.unregister(UserKey(1), b.id).await.unwrap());
    assert!(devices.unregister(UserKey(2), b.id).await.unwrap());
    assert!(!devices.unregister(UserKey(2), b.id).await.unwrap());
    assert_eq!(devices.of(&[UserKey(2)]).await.unwrap(), [[]]);
    drop(devices);
    engine.reopen().await;

    let devices = engine.stores().devices;
    let of = devices.of(&[UserKey(1), UserKey(2)]).await.unwrap();
    assert_eq!(of, [vec![a], vec![]]);
    assert!(register(&*devices, 2, web_push(1), 1).await.id > b.id);
}

pub async fn a_device_above_the_limit_is_refused<E: Engine>(engine: &mut E) {
    let both = [engine.stores().devices, engine.peer().await.devices];
    let calls = (0..=DEVICES_PER_USER_MAX)
        .map(|n| both[n % 2].register(USER, webhook(&format!("https://{n}"), 1), Timestamp(1)));
    let registered = futures::future::join_all(calls).await;
    let refused: Vec<_> = registered.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].kind(), ErrorKind::LimitExceeded);
    let devices = listed(&*both[0]).await;
    assert_eq!(devices.len(), DEVICES_PER_USER_MAX);
    // One that is registered again takes no room.
    let again = both[1]
        .register(USER, devices[5].address.clone(), Timestamp(2))
        .await
        .unwrap();
    assert_eq!((again.id, again.generation), (devices[5].id, 2));
}

pub async fn one_endpoint_is_one_device_however_it_is_spelled<E: Engine>(engine: &mut E) {
    let devices = engine.stores().devices;
    let first = register(&*devices, 7, webhook("HTTPS://Push.Example.com:443/%61", 1), 1).await;
    let again = register(&*devices, 7, webhook("https://push.example.com/a", 1), 2).await;
    assert_eq!(again.id, first.id);
    assert_eq!(again.address.url(), "https://push.example.com/a");
    assert_eq!(listed(&*devices).await, [again]);
}

pub async fn a_webhook_that_is_registered_again_keeps_its_secret<E: Engine>(engine: &mut E) {
    let both = [engine.stores().devices, engine.peer().await.devices];
    let register_webhook = |which: usize, secret| {
        both[which].register_webhook(USER, "https://a".into(), vec![secret; 32], Timestamp(1))
    };
    let (first, second) = tokio::join!(register_webhook(0, 1), register_webhook(1, 2));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.id, second.id);
    // Concurrent registrations get the same secret, so that both callers can verify pushes.
    assert_eq!(secret_of(&first), secret_of(&second));
    assert_eq!(secret_of(&register_webhook(0, 3).await.unwrap()).1, None);
    // The address changes its kind: the secret of the webhook is of no use.
    let browser = Address::WebPush {
        endpoint: "https://a".into(),
        p256dh: vec![1; 65],
        auth: vec![1; 16],
    };
    let browser = register(&*both[0], 7, browser, 2).await;
    assert_eq!((browser.id, browser.previous_secret), (first.id, None));
}

pub async fn a_rotated_secret_is_kept_until_it_expires<E: Engine>(engine: &mut E) {
    let devices = engine.stores().devices;
    let hook = register(&*devices, 7, webhook("https://a", 1), 1).await;
    let browser = register(&*devices, 7, web_push(1), 1).await;
    let rotate = async |id, secret: u8| {
        let rotated = devices.rotate_secret(USER, id, vec![secret; 32], Timestamp(99));
        rotated.await.unwrap()
    };
    let rotated = rotate(hook.id, 2).await.unwrap();
    assert_eq!(secret_of(&rotated), (2, Some(1)));
    assert_eq!(rotated.previous_secret.unwrap().expires_at, Timestamp(99));
    // Repeating the call must not forget the first secret.
    assert_eq!(secret_of(&rotate(hook.id, 2).await.unwrap()), (2, Some(1)));
    assert_eq!(rotate(browser.id, 3).await, None);
    assert_eq!(rotate(DeviceId(99), 3).await, None);
    // A push in flight still belongs to the device.
    assert_eq!(rotate(hook.id, 3).await.unwrap().generation, hook.generation);
    drop(devices);
    engine.reopen().await;
    assert_eq!(
        secret_of(&listed(&*engine.stores().devices).await[0]),
        (3, Some(2))
    );
}

pub async fn a_late_result_does_not_change_a_device_that_was_renewed_meanwhile<E: Engine>(engine: &mut E) {
    let devices = engine.stores().devices;
    let disabled = Disabled {
        reason: DisabledReason::Gone,
        at: Timestamp(5),
    };
    let first = register(&*devices, 7, webhook("https://a", 1), 1).await;
    let renewed = register(&*devices, 7, webhook("https://a", 1), 2).await;
    let old = first.registration();
    assert!(!devices.unregister_current(old).await.unwrap());
    assert!(!devices.disable(old, disabled).await.unwrap());
    assert_eq!(devices.record_failure(old, Timestamp(5)).await.unwrap(), None);
    devices.record_success(old).await.unwrap();
    assert_eq!(listed(&*devices).await, slice::from_ref(&renewed));

    // Enabling renews a device too.
    let enabled = devices.enable(USER, first.id).await.unwrap().unwrap();
    assert!(!devices.disable(renewed.registration(), disabled).await.unwrap());
    assert!(!devices.unregister_current(renewed.registration()).await.unwrap());
    assert!(devices.unregister_current(enabled.registration()).await.unwrap());
    assert_eq!(listed(&*devices).await, []);
    assert!(!devices.unregister_current(enabled.registration()).await.unwrap());
}

pub async fn a_disabled_device_is_listed_until_it_is_enabled_or_registered_again<E: Engine>(engine: &mut E) {
    let devices = engine.stores().devices;
    let hook = register(&*devices, 7, webhook("https://a", 1), 1).await;
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
    engine.reopen().await;

    let devices = engine.stores().devices;
    assert_eq!(listed(&*devices).await[0].disabled, Some(failing));
    let enabled = devices.enable(USER, hook.id).await.unwrap().unwrap();
    assert_eq!(enabled.disabled, None);
    assert!(devices.disable(enabled.registration(), gone).await.unwrap());
    let again = register(&*devices, 7, webhook("https://a", 1), 9).await;
    assert_eq!((again.disabled, again.id), (None, hook.id));
    assert_eq!(devices.enable(USER, DeviceId(99)).await.unwrap(), None);
    assert_eq!(devices.enable(UserKey(8), hook.id).await.unwrap(), None);
}

pub async fn a_failing_streak_counts_days_with_failures_and_ends_with_a_success<E: Engine>(engine: &mut E) {
    let at = |hours| Timestamp(0).plus(Duration::from_hours(hours));
    let hook = register(&*engine.stores().devices, 7, webhook("https://a", 1), 0).await;
    let fail = async |devices: &dyn Devices, hours| {
        let streak = devices
            .record_failure(hook.registration(), at(hours))
            .await
            .unwrap()
            .unwrap();
        (streak.since, streak.days)
    };
    {
        let devices = engine.stores().devices;
        assert_eq!(fail(&*devices, 1).await, (at(1), 1));
        assert_eq!(fail(&*devices, 24).await, (at(1), 1));
        assert_eq!(fail(&*devices, 25).await, (at(1), 2));
    }
    engine.reopen().await;
    let devices = engine.stores().devices;
    assert_eq!(fail(&*devices, 90).await, (at(1), 3));
    devices.record_success(hook.registration()).await.unwrap();
    assert_eq!(listed(&*devices).await, slice::from_ref(&hook));
    assert_eq!(fail(&*devices, 91).await, (at(91), 1));
}

pub async fn web_push_devices_belong_to_a_vapid_key<E: Engine>(engine: &mut E) {
    let devices = engine.stores().devices;
    let hook = register(&*devices, 1, webhook("https://a", 1), 1).await;
    assert!(!devices.has_web_push().await.unwrap());
    assert_eq!(devices.vapid_key().await.unwrap(), None);
    for user in 1..=3 {
        register(&*devices, user, web_push(1), 1).await;
        register(&*devices, user, web_push(2), 1).await;
    }
    devices.set_vapid_key(&[6; 65]).await.unwrap();
    devices.set_vapid_key(&[7; 65]).await.unwrap();
    drop(devices);
    engine.reopen().await;

    let devices = engine.stores().devices;
    assert_eq!(devices.vapid_key().await.unwrap(), Some(vec![7; 65]));
    assert!(devices.has_web_push().await.unwrap());
    let last = devices.of(&[UserKey(3)]).await.unwrap()[0][1].id;
    assert_eq!(devices.unregister_web_push().await.unwrap(), 6);
    assert!(!devices.has_web_push().await.unwrap());
    let of = devices.of(&[UserKey(1), UserKey(2)]).await.unwrap();
    assert_eq!(of, [vec![hook], vec![]]);
    assert!(register(&*devices, 1, web_push(1), 1).await.id > last);
}
