//! One device an endpoint, secrets of webhooks, disabled devices, endpoints that need a VAPID subject.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use herald_model::{Device, Disabled, DisabledReason, UserId, UserKey, time::Timestamp};
use herald_proto::v1::{self, register_device_request::Address};
use tonic::{Code, Status};

use crate::harness::{World, fields, reason};

/// The example of RFC 8291.
const P256DH: &str =
    "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

const USER: &str = "107";

async fn register(world: &World, address: Address) -> Result<v1::Device, Status> {
    let request = v1::RegisterDeviceRequest {
        user_id: USER.into(),
        address: Some(address),
    };
    let response = world.devices().register_device(request).await?;
    Ok(response.into_inner().device.unwrap())
}

async fn webhook(world: &World, url: &str) -> v1::Device {
    let hook = v1::Webhook {
        url: url.into(),
        secret: String::new(),
    };
    register(world, Address::Webhook(hook)).await.unwrap()
}

async fn web_push(world: &World, endpoint: &str) -> Result<v1::Device, Status> {
    let subscription = v1::WebPush {
        endpoint: endpoint.into(),
        p256dh: P256DH.into(),
        auth: AUTH.into(),
    };
    register(world, Address::WebPush(subscription)).await
}

async fn rotate(
    world: &World,
    device_id: &str,
    secret: &str,
    overlap: Option<prost_types::Duration>,
) -> Result<v1::Device, Status> {
    let request = v1::RotateWebhookSecretRequest {
        user_id: USER.into(),
        device_id: device_id.into(),
        secret: secret.into(),
        overlap,
    };
    let response = world.devices().rotate_webhook_secret(request).await?;
    Ok(response.into_inner().device.unwrap())
}

fn secret_of(device: &v1::Device) -> &str {
    match &device.address {
        Some(v1::device::Address::Webhook(hook)) => &hook.secret,
        _ => panic!("{device:?} is no webhook"),
    }
}

async fn user_key(world: &World) -> UserKey {
    let user = UserId::new(USER).unwrap();
    world.stores.users.find(&[user]).await.unwrap()[0].unwrap()
}

async fn stored(world: &World) -> Vec<Device> {
    let key = user_key(world).await;
    world.stores.devices.of(&[key]).await.unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_endpoint_is_one_device_however_it_is_spelled() {
    let world = World::start().await;
    let first = webhook(&world, "https://hooks.example.org/~a").await;
    for spelling in [
        "HTTPS://HOOKS.Example.ORG:443/~a",
        "https://hooks.example.org./%7Ea",
        "https://hooks.example.org/b/../~a?",
    ] {
        let again = webhook(&world, spelling).await;
        assert_eq!(
            (&again.device_id, &again.address),
            (&first.device_id, &{
                Some(v1::device::Address::Webhook(v1::Webhook {
                    url: "https://hooks.example.org/~a".into(),
                    secret: String::new(),
                }))
            })
        );
    }
    let push = web_push(&world, "https://Bücher.example/1").await.unwrap();
    let again = web_push(&world, "https://xn--bcher-kva.example:443/1")
        .await
        .unwrap();
    assert_eq!(push.device_id, again.device_id);
    assert_eq!(stored(&world).await.len(), 2);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_registered_again_keeps_its_secret() {
    let world = World::start().await;
    let first = webhook(&world, "https://hooks.example.org/a").await;
    assert!(secret_of(&first).starts_with("whsec_"));
    let before = stored(&world).await.remove(0);
    let again = webhook(&world, "https://hooks.example.org/a").await;
    assert_eq!(secret_of(&again), "", "the secret is shown only once");
    let after = stored(&world).await.remove(0);
    assert_eq!((&after.address, &after.previous_secret), (&before.address, &None));
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_rotated_with_an_overlap() {
    let world = World::start().await;
    let hook = webhook(&world, "https://hooks.example.org/a").await;
    let push = web_push(&world, "https://push.example.org/1").await.unwrap();
    let rotated = rotate(&world, &hook.device_id, "", None).await.unwrap();
    assert!(secret_of(&rotated).starts_with("whsec_"));
    assert_ne!(secret_of(&rotated), secret_of(&hook));
    let expires = rotated.previous_secret_expire_time.unwrap().seconds;
    let in_seconds = expires - Timestamp::now().0 / 1_000_000;
    assert!((86_000..=86_400).contains(&in_seconds), "{in_seconds}");
    let previous = stored(&world).await[0].previous_secret.clone().unwrap();
    let first = secret_of(&hook).strip_prefix("whsec_").unwrap();
    assert_eq!(STANDARD.encode(previous.secret), first);

    // A secret that others have learnt signs no more.
    let own = format!("whsec_{}", STANDARD.encode([7; 24]));
    let none = Some(prost_types::Duration::default());
    let rotated = rotate(&world, &hook.device_id, &own, none).await.unwrap();
    assert_eq!(secret_of(&rotated), "");
    assert_eq!(rotated.previous_secret_expire_time, None);

    for device_id in [push.device_id.as_str(), "99"] {
        let status = rotate(&world, device_id, "", None).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::NotFound, "DEVICE_NOT_FOUND")
        );
    }
    let long = Some(prost_types::Duration {
        seconds: 7 * 86_400 + 1,
        nanos: 0,
    });
    let status = rotate(&world, &hook.device_id, "whsec_short", long)
        .await
        .unwrap_err();
    assert_eq!(fields(&status), ["secret", "overlap"]);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_device_shows_why_and_is_enabled_by_a_call() {
    let world = World::start().await;
    let hook = webhook(&world, "https://hooks.example.org/a").await;
    assert_eq!(hook.state(), v1::DeviceState::Enabled);
    let disabled = Disabled {
        reason: DisabledReason::Gone,
        at: Timestamp(1_700_000_000_000_000),
    };
    let registration = stored(&world).await[0].registration();
    assert!(
        world
            .stores
            .devices
            .disable(registration, disabled)
            .await
            .unwrap()
    );
    let list = v1::ListDevicesRequest { user_id: USER.into() };
    let listed = world.devices().list_devices(list).await.unwrap().into_inner();
    let device = &listed.devices[0];
    assert_eq!(
        (device.state(), device.disabled_reason()),
        (v1::DeviceState::Disabled, v1::DisabledReason::Gone)
    );
    assert_eq!(device.disabled_time.unwrap().seconds, 1_700_000_000);

    let enable = |device_id: &str| v1::EnableDeviceRequest {
        user_id: USER.into(),
        device_id: device_id.into(),
    };
    let response = world
        .devices()
        .enable_device(enable(&hook.device_id))
        .await
        .unwrap();
    let enabled = response.into_inner().device.unwrap();
    assert_eq!(
        (enabled.state(), enabled.disabled_time),
        (v1::DeviceState::Enabled, None)
    );
    let status = world.devices().enable_device(enable("99")).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "DEVICE_NOT_FOUND")
    );
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_of_apple_is_refused_without_a_vapid_subject() {
    let world = World::start().await;
    let status = web_push(&world, "https://web.push.apple.com/QGx")
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "VAPID_SUBJECT_MISSING")
    );
    assert!(status.message().contains("push.vapid_subject"), "{status}");
    web_push(&world, "https://fcm.googleapis.com/fcm/send/1")
        .await
        .unwrap();
    // A webhook at Apple is no push service.
    webhook(&world, "https://hooks.push.apple.com/a").await;
    world.stop().await.unwrap();
}
