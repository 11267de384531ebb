//! DeviceService and PreferenceService.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use herald_model::{UserId, time::Timestamp};
use herald_proto::v1::{self, device, register_device_request::Address};
use tonic::Code;

use crate::harness::{Setup, World, fields, private_endpoints, reason};

/// The example of RFC 8291.
const P256DH: &str =
    "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

fn web_push(endpoint: &str, p256dh: &str, auth: &str) -> Address {
    Address::WebPush(v1::WebPush {
        endpoint: endpoint.into(),
        p256dh: p256dh.into(),
        auth: auth.into(),
    })
}

fn webhook(url: &str, secret: &str) -> Address {
    Address::Webhook(v1::Webhook {
        url: url.into(),
        secret: secret.into(),
    })
}

fn register(user: &str, address: Option<Address>) -> v1::RegisterDeviceRequest {
    v1::RegisterDeviceRequest {
        user_id: user.into(),
        address,
    }
}

async fn devices(world: &World, user: &str) -> v1::ListDevicesResponse {
    let request = v1::ListDevicesRequest { user_id: user.into() };
    world.devices().list_devices(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_stored_and_a_generated_secret_is_returned_once() {
    let world = World::start().await;
    let mut client = world.devices();
    let mut add = async |address| {
        client
            .register_device(register("107", Some(address)))
            .await
            .unwrap()
            .into_inner()
            .device
            .unwrap()
    };
    let push = add(web_push("https://push.example.org/1", P256DH, AUTH)).await;
    let Some(device::Address::WebPush(address)) = push.address else {
        panic!("{push:?}")
    };
    assert_eq!((address.p256dh.as_str(), address.auth.as_str()), (P256DH, ""));

    let hook = add(webhook("https://hooks.example.org/a", "")).await;
    let Some(device::Address::Webhook(address)) = hook.address else {
        panic!("{hook:?}")
    };
    let secret = STANDARD
        .decode(address.secret.strip_prefix("whsec_").unwrap())
        .unwrap();
    assert_eq!(secret.len(), 32);

    // A secret from the caller is not returned; the same URL keeps its device id.
    let given = format!("whsec_{}", STANDARD.encode([7; 24]));
    let again = add(webhook("https://hooks.example.org/a", &given)).await;
    assert_eq!(again.device_id, hook.device_id);
    let Some(device::Address::Webhook(address)) = again.address else {
        panic!("{again:?}")
    };
    assert_eq!(address.secret, "");

    let listed = devices(&world, "107").await;
    assert_eq!(listed.vapid_public_key, "the-vapid-key");
    let ids: Vec<_> = listed.devices.iter().map(|d| d.device_id.as_str()).collect();
    assert_eq!(ids, [push.device_id.as_str(), hook.device_id.as_str()]);
    for device in listed.devices {
        match device.address.unwrap() {
            device::Address::WebPush(address) => assert_eq!(address.auth, ""),
            device::Address::Webhook(address) => assert_eq!(address.secret, ""),
        }
    }

    let remove = |id: &str| v1::UnregisterDeviceRequest {
        user_id: "107".into(),
        device_id: id.into(),
    };
    world
        .devices()
        .unregister_device(remove(&push.device_id))
        .await
        .unwrap();
    let status = world
        .devices()
        .unregister_device(remove(&push.device_id))
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "DEVICE_NOT_FOUND")
    );
    assert_eq!(devices(&world, "107").await.devices.len(), 1);
    assert_eq!(
        fields(&world.devices().unregister_device(remove("x")).await.unwrap_err()),
        ["device_id"]
    );
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_device_is_refused_by_field_and_not_stored() {
    let world = World::start().await;
    let good = "https://push.example.org/1";
    for (request, expected) in [
        (
            register("", Some(webhook("https://h.example.org", ""))),
            vec!["user_id"],
        ),
        (register("107", None), vec!["address"]),
        (
            register("107", Some(webhook("http://h.example.org", ""))),
            vec!["webhook.url"],
        ),
        (
            register("107", Some(webhook("not a url", ""))),
            vec!["webhook.url"],
        ),
        (
            register("107", Some(webhook("https://127.0.0.1/", ""))),
            vec!["webhook.url"],
        ),
        (
            register("107", Some(webhook("https://10.0.0.7:8443/x", ""))),
            vec!["webhook.url"],
        ),
        (
            register("107", Some(webhook("https://[::1]/", ""))),
            vec!["webhook.url"],
        ),
        (
            register("107", Some(webhook("https://169.254.169.254/latest", ""))),
            vec!["webhook.url"],
        ),
        (
            register("107", Some(webhook("https://localhost/", ""))),
            vec!["webhook.url"],
        ),
        (
            register("107", Some(webhook("https://h.example.org/a b", ""))),
            vec!["webhook.url"],
        ),
        (
            register("107", Some(webhook(" https://h.example.org/", ""))),
            vec!["webhook.url"],
        ),
        (
            register(
                "107",
                Some(web_push("https://push.example.org/\n1", P256DH, AUTH)),
            ),
            vec!["web_push.endpoint"],
        ),
        (
            register("107", Some(webhook("https://h.example.org", "secret"))),
            vec!["webhook.secret"],
        ),
        (
            register("107", Some(web_push("http://push.example.org", P256DH, AUTH))),
            vec!["web_push.endpoint"],
        ),
        (
            register("107", Some(web_push(good, "AAAA", AUTH))),
            vec!["web_push.p256dh"],
        ),
        (
            register("107", Some(web_push(good, P256DH, "AAAA"))),
            vec!["web_push.auth"],
        ),
        (
            register("\u{1}", Some(web_push("", "", ""))),
            vec!["user_id", "web_push.endpoint", "web_push.p256dh", "web_push.auth"],
        ),
    ] {
        let status = world
            .devices()
            .register_device(request.clone())
            .await
            .unwrap_err();
        assert_eq!(fields(&status), expected, "{request:?}");
    }
    assert_eq!(devices(&world, "107").await.devices, []);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn private_endpoints_can_be_allowed_and_a_user_has_at_most_32_devices() {
    let world = World::start_with(Setup {
        config: private_endpoints(),
        ..Setup::default()
    })
    .await;
    for i in 0..32 {
        let request = register("107", Some(webhook(&format!("http://127.0.0.1:9000/{i}"), "")));
        world.devices().register_device(request).await.unwrap();
    }
    let status = world
        .devices()
        .register_device(register("107", Some(webhook("http://127.0.0.1/x", ""))))
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::ResourceExhausted, "TOO_MANY_DEVICES")
    );
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_changes_only_the_given_preferences() {
    let world = World::start().await;
    let get = async || {
        let request = v1::GetPreferencesRequest {
            user_id: "107".into(),
        };
        world
            .preferences()
            .get_preferences(request)
            .await
            .unwrap()
            .into_inner()
            .preferences
            .unwrap()
    };
    let update = async |change: v1::UpdatePreferencesRequest| {
        world
            .preferences()
            .update_preferences(change)
            .await
            .map(|r| r.into_inner().preferences.unwrap())
    };
    let mask = |paths: &[&str]| {
        let paths = paths.iter().map(ToString::to_string).collect();
        Some(prost_types::FieldMask { paths })
    };
    let change = v1::UpdatePreferencesRequest {
        user_id: "107".into(),
        ..Default::default()
    };
    assert_eq!(
        get().await,
        v1::Preferences {
            push_enabled: true,
            muted_author_ids: vec![]
        }
    );

    let mute = vec!["a".to_owned(), "b".to_owned()];
    let muted = update(v1::UpdatePreferencesRequest {
        mute_author_ids: mute.clone(),
        ..change.clone()
    })
    .await
    .unwrap();
    assert_eq!(
        muted,
        v1::Preferences {
            push_enabled: true,
            muted_author_ids: mute
        }
    );
    let off = update(v1::UpdatePreferencesRequest {
        preferences: Some(v1::Preferences {
            push_enabled: false,
            muted_author_ids: vec!["not in the mask".into()],
        }),
        update_mask: mask(&["push_enabled"]),
        ..change.clone()
    })
    .await
    .unwrap();
    assert_eq!((off.push_enabled, off.muted_author_ids.len()), (false, 2));
    let unmute = vec!["a".to_owned(), "unknown author".to_owned()];
    update(v1::UpdatePreferencesRequest {
        unmute_author_ids: unmute,
        ..change.clone()
    })
    .await
    .unwrap();
    assert_eq!(
        get().await,
        v1::Preferences {
            push_enabled: false,
            muted_author_ids: vec!["b".into()]
        }
    );

    let replaced = update(v1::UpdatePreferencesRequest {
        preferences: Some(v1::Preferences {
            push_enabled: true,
            muted_author_ids: vec!["c".into()],
        }),
        update_mask: mask(&["muted_author_ids"]),
        ..change.clone()
    });
    assert_eq!(
        replaced.await.unwrap(),
        v1::Preferences {
            push_enabled: false,
            muted_author_ids: vec!["c".into()]
        }
    );
    let defaults = v1::Preferences {
        push_enabled: true,
        muted_author_ids: vec![],
    };
    let all = update(v1::UpdatePreferencesRequest {
        preferences: Some(defaults.clone()),
        update_mask: mask(&["*"]),
        ..change.clone()
    });
    assert_eq!(all.await.unwrap(), defaults);
    for (preferences, mask, expected) in [
        (Some(defaults.clone()), None, vec!["update_mask"]),
        (None, mask(&["push_enabled"]), vec!["preferences"]),
        (
            Some(defaults.clone()),
            mask(&["push"]),
            vec!["update_mask.paths[0]"],
        ),
        (
            Some(defaults),
            mask(&["muted_author_ids"]),
            vec!["mute_author_ids"],
        ),
    ] {
        let refused = update(v1::UpdatePreferencesRequest {
            preferences,
            update_mask: mask,
            mute_author_ids: vec!["d".into()],
            ..change.clone()
        });
        assert_eq!(fields(&refused.await.unwrap_err()), expected);
    }
    assert_eq!(get().await.muted_author_ids, Vec::<String>::new());

    let both = v1::UpdatePreferencesRequest {
        user_id: String::new(),
        mute_author_ids: vec!["a".into(), String::new()],
        unmute_author_ids: vec!["a".into()],
        ..change.clone()
    };
    let expected = ["user_id", "mute_author_ids[1]", "unmute_author_ids[0]"];
    assert_eq!(fields(&update(both).await.unwrap_err()), expected);
    let one = update(v1::UpdatePreferencesRequest {
        mute_author_ids: vec!["b".into()],
        ..change.clone()
    });
    assert_eq!(one.await.unwrap().muted_author_ids, ["b"]);
    let many = (0..1_000).map(|i| format!("author-{i}")).collect();
    let status = update(v1::UpdatePreferencesRequest {
        mute_author_ids: many,
        ..change
    })
    .await
    .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::ResourceExhausted, "TOO_MANY_MUTED_AUTHORS")
    );
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_muted_author_who_was_erased_is_nobody() {
    let world = World::start().await;
    let mute = async |ids: Vec<String>| {
        let change = v1::UpdatePreferencesRequest {
            user_id: "reader".into(),
            mute_author_ids: ids,
            ..Default::default()
        };
        let updated = world.preferences().update_preferences(change).await;
        updated.map(|updated| updated.into_inner().preferences.unwrap().muted_author_ids)
    };
    let mut authors: Vec<String> = (0..1_000).map(|n| format!("author-{n}")).collect();
    assert_eq!(mute(authors.clone()).await.unwrap().len(), 1_000);
    let erased = UserId::new(authors.remove(0)).unwrap();
    let erasures = &world.stores.erasures;
    erasures
        .begin(&erased, "an operator", Timestamp::now())
        .await
        .unwrap()
        .expect("an erasure");

    // It isn't read.
    let request = v1::GetPreferencesRequest {
        user_id: "reader".into(),
    };
    let read = world.preferences().get_preferences(request).await.unwrap();
    let muted = read.into_inner().preferences.unwrap().muted_author_ids;
    assert_eq!(muted, authors);
    // A change makes room for another author.
    authors.push("another".into());
    assert_eq!(mute(vec!["another".into()]).await.unwrap(), authors);
    let stored = world.key("reader").await;
    let stored = world.stores.preferences.of(&[stored]).await.unwrap();
    assert_eq!(stored[0].muted.len(), 1_000);
    world.stop().await.unwrap();
}
