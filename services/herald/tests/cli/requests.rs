//! Requests of commands for given arguments.

use herald_proto::v1::{
    DeletePostRequest, DeliveryState, EnableDeviceRequest, FollowRequest, GetPostStatsRequest,
    GetTotalsRequest, Lane, ListDevicesRequest, ListRecipientsRequest, ListTimelineRequest, Preferences,
    RegisterDeviceRequest, RotateWebhookSecretRequest, SubmitPostRequest, UnfollowRequest,
    UnregisterDeviceRequest, UpdatePreferencesRequest, register_device_request::Address,
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    run::{herald, herald_with_input},
    server::Server,
};

#[tokio::test]
async fn the_arguments_of_a_post_are_sent() {
    let server = Server::start().await;
    let arguments = [
        "post",
        "--author",
        "107",
        "--text",
        "-5 degrees",
        "--lane",
        "high",
        "--push-ttl",
        "1h 30m",
        "--link",
        "https://a.example",
        "--link",
        "https://b.example",
        "--media",
        "https://c.example/x.jpg",
        "--title",
        "Weather",
        "--collapse-key",
        "weather-1",
        "--data",
        "city=Berlin",
        "--data",
        "chart=a=b",
        "--request-id",
        "6b1f0b4e-3f0e-4b57-9a5d-0d6c5e1d7b11",
        "--output",
        "json",
    ];
    let done = herald(&server.url, &arguments).await.ok();
    assert_eq!(
        done.stdout,
        "{\"post_id\":17,\"request_id\":\"6b1f0b4e-3f0e-4b57-9a5d-0d6c5e1d7b11\",\
         \"accepted_time\":\"2026-01-31T08:00:00Z\",\"duplicate\":false}\n"
    );
    let request: SubmitPostRequest = server.call();
    assert_eq!(request.author_id, "107");
    assert_eq!(request.text, "-5 degrees");
    assert_eq!(request.lane(), Lane::High);
    assert_eq!(request.push_ttl.unwrap().seconds, 5_400);
    assert_eq!(request.links, ["https://a.example", "https://b.example"]);
    assert_eq!(request.media_urls, ["https://c.example/x.jpg"]);
    assert_eq!(request.push_title, "Weather");
    assert_eq!(request.push_collapse_key, "weather-1");
    let data = [("chart", "a=b"), ("city", "Berlin")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(request.push_data, data.into());
    let unclear = ["post", "-a", "107", "-t", "hi", "--data", "city"];
    assert_eq!(herald(&server.url, &unclear).await.code, 2);
}

#[tokio::test]
async fn a_post_comes_from_standard_input() {
    let server = Server::start().await;
    let done = herald_with_input(&server.url, &["post", "-a", "107", "-t", "-"], "two\nlines\n")
        .await
        .ok();
    assert!(
        done.stdout.starts_with("post 17 accepted (request id "),
        "{done:?}"
    );
    let request: SubmitPostRequest = server.call();
    assert_eq!(request.text, "two\nlines");
    assert_eq!(request.lane(), Lane::Normal);
    assert_eq!(request.push_ttl, None);
}

#[tokio::test]
async fn a_post_is_retried_with_the_same_request_id() {
    let server = Server::start().await;
    server.fail([
        Status::unavailable("the broker is away"),
        Status::unavailable("still away"),
    ]);
    let done = herald(
        &server.url,
        &["post", "-a", "107", "-t", "hi", "--output", "json"],
    )
    .await
    .ok();
    let requests: Vec<SubmitPostRequest> = server.calls();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|request| *request == requests[0]));
    assert_eq!(requests[0].request_id.len(), 36);
    assert_eq!(done.json()["request_id"], requests[0].request_id);
}

#[tokio::test]
async fn an_unanswered_post_has_a_hint_with_its_request_id() {
    let server = Server::start().await;
    server.fail([
        Status::unavailable("the broker is away"),
        Status::unavailable("still away"),
    ]);
    let done = herald(&server.url, &["post", "-a", "107", "-t", "hi", "--retries", "1"]).await;
    assert_eq!(done.code, 3, "{done:?}");
    let requests: Vec<SubmitPostRequest> = server.calls();
    assert_eq!(requests.len(), 2);
    assert!(
        done.stderr
            .contains(&format!("--request-id {}", requests[0].request_id)),
        "{done:?}"
    );
}

#[tokio::test]
async fn an_invalid_post_is_sent_once_and_its_fields_are_named() {
    let server = Server::start().await;
    let mut details = ErrorDetails::new();
    details
        .add_bad_request_violation("author_id", "must not be empty")
        .set_error_info("INVALID_REQUEST", "herald.dev", std::collections::HashMap::new());
    let status = Status::with_error_details(Code::InvalidArgument, "the request is invalid", details);
    server.fail([status.clone(), status]);
    let done = herald(&server.url, &["post", "-a", "", "-t", "hi"]).await;
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("author_id: must not be empty"), "{done:?}");
    let error = herald(&server.url, &["post", "-a", "", "-t", "hi", "-o", "json"])
        .await
        .error();
    assert_eq!(error["code"], "INVALID_ARGUMENT");
    assert_eq!(error["reason"], "INVALID_REQUEST");
    assert_eq!(error["fields"][0]["field"], "author_id");
    assert_eq!(server.calls::<SubmitPostRequest>().len(), 2);
}

#[tokio::test]
async fn a_full_stream_is_exit_code_6() {
    let server = Server::start().await;
    let delay = std::time::Duration::from_secs(2);
    let details = ErrorDetails::with_retry_info(Some(delay));
    server.fail([Status::with_error_details(
        Code::ResourceExhausted,
        "the stream is full",
        details,
    )]);
    let done = herald(&server.url, &["post", "-a", "107", "-t", "hi", "-o", "json"]).await;
    assert_eq!(done.code, 6, "{done:?}");
    assert_eq!(done.error()["retry_after_seconds"], 2.0);
}

#[tokio::test]
async fn follows_are_made_and_ended() {
    let server = Server::start().await;
    let done = herald(&server.url, &["follow", "1", "107", "--notify", "-o", "json"])
        .await
        .ok();
    assert_eq!(
        done.stdout,
        "{\"follower_id\":\"1\",\"author_id\":\"107\",\"notify\":true,\"changed\":true}\n"
    );
    let follow = server.call::<FollowRequest>().follow.unwrap();
    assert_eq!(
        (
            follow.follower_id.as_str(),
            follow.author_id.as_str(),
            follow.notify
        ),
        ("1", "107", Some(true))
    );
    // Without a flag, pushes stay as they are.
    for (arguments, notify) in [
        (&["follow", "1", "107"][..], None),
        (&["follow", "1", "107", "--no-notify"], Some(false)),
    ] {
        herald(&server.url, arguments).await.ok();
        let requests: Vec<FollowRequest> = server.calls();
        let follow = requests.last().unwrap().follow.as_ref().unwrap();
        assert_eq!(follow.notify, notify, "{arguments:?}");
    }

    let done = herald(&server.url, &["unfollow", "1", "107"]).await.ok();
    assert_eq!(done.stdout, "1 didn't follow 107\n");
    let request: UnfollowRequest = server.call();
    assert_eq!(
        (request.follower_id.as_str(), request.author_id.as_str()),
        ("1", "107")
    );
}

#[tokio::test]
async fn a_delete_can_be_guarded() {
    let server = Server::start().await;
    herald(&server.url, &["delete", "17", "--author", "107"])
        .await
        .ok();
    assert_eq!(
        server.call::<DeletePostRequest>(),
        DeletePostRequest {
            post_id: 17,
            author_id: "107".into(),
            any_author: false
        }
    );
    assert_eq!(herald(&server.url, &["delete", "17"]).await.code, 2);
    server.fail([Status::permission_denied("107 didn't write it")]);
    assert_eq!(
        herald(&server.url, &["delete", "17", "--any-author"]).await.code,
        1
    );
    let requests: Vec<DeletePostRequest> = server.calls();
    assert!(requests[1].any_author && requests[1].author_id.is_empty());
}

#[tokio::test]
async fn devices_are_webhooks_or_subscriptions() {
    let server = Server::start().await;
    let url = "https://example.com/hook";
    let done = herald(
        &server.url,
        &["device", "add", "1", "--webhook", url, "-o", "json"],
    )
    .await
    .ok();
    assert_eq!(done.json()["kind"], "webhook");
    assert_eq!(done.json()["secret"], "whsec_made");
    herald_with_input(
        &server.url,
        &["device", "add", "1", "--webhook", url, "--secret", "-"],
        "whsec_own\n",
    )
    .await
    .ok();

    let json =
        r#"{"endpoint":"https://push.example/x","expirationTime":null,"keys":{"p256dh":"BN","auth":"8e"}}"#;
    herald(&server.url, &["device", "add", "1", "--web-push", json])
        .await
        .ok();
    herald_with_input(&server.url, &["device", "add", "1", "--web-push", "-"], json)
        .await
        .ok();
    let apart = [
        "device",
        "add",
        "1",
        "--web-push",
        "https://push.example/x",
        "--p256dh",
        "BN",
        "--auth",
        "8e",
    ];
    herald(&server.url, &apart).await.ok();

    let requests: Vec<RegisterDeviceRequest> = server.calls();
    let addresses: Vec<Address> = requests
        .into_iter()
        .filter_map(|request| request.address)
        .collect();
    let secrets: Vec<&str> = addresses
        .iter()
        .filter_map(|address| match address {
            Address::Webhook(hook) => Some(hook.secret.as_str()),
            Address::WebPush(_) => None,
        })
        .collect();
    assert_eq!(secrets, ["", "whsec_own"]);
    let pushes = &addresses[2..];
    assert_eq!(pushes.len(), 3);
    for push in pushes {
        let Address::WebPush(push) = push else {
            panic!("{push:?}")
        };
        assert_eq!(
            (push.endpoint.as_str(), push.p256dh.as_str(), push.auth.as_str()),
            ("https://push.example/x", "BN", "8e")
        );
    }
}

#[tokio::test]
async fn devices_are_listed_and_removed() {
    let server = Server::start().await;
    let done = herald(&server.url, &["device", "list", "1", "-o", "json"])
        .await
        .ok();
    assert_eq!(server.call::<ListDevicesRequest>().user_id, "1");
    assert_eq!(done.json()["vapid_public_key"], "BKey");
    assert_eq!(done.json()["devices"][0]["endpoint"], "https://example.com/hook");
    assert!(done.json()["devices"][0].get("secret").is_none());
    assert_eq!(done.json()["devices"][0]["state"], "enabled");
    let disabled = &done.json()["devices"][1];
    assert_eq!(
        (
            &disabled["state"],
            &disabled["disabled_reason"],
            &disabled["disabled_time"]
        ),
        (&"disabled".into(), &"gone".into(), &"2026-01-31T09:00:00Z".into())
    );
    let text = herald(&server.url, &["device", "list", "1"]).await.ok().stdout;
    assert!(
        text.contains("DEVICE") && text.contains("VAPID public key: BKey"),
        "{text}"
    );
    assert!(text.contains("disabled: responded 410 (Gone)"), "{text}");

    herald(&server.url, &["device", "remove", "1", "d1"]).await.ok();
    let request: UnregisterDeviceRequest = server.call();
    assert_eq!(
        (request.user_id.as_str(), request.device_id.as_str()),
        ("1", "d1")
    );
    server.fail([Status::not_found("there is no such device")]);
    assert_eq!(
        herald(&server.url, &["device", "remove", "1", "d1"]).await.code,
        4
    );
}

#[tokio::test]
async fn a_device_is_enabled() {
    let server = Server::start().await;
    let done = herald(&server.url, &["device", "enable", "1", "d1", "-o", "json"])
        .await
        .ok();
    let request: EnableDeviceRequest = server.call();
    assert_eq!(
        (request.user_id.as_str(), request.device_id.as_str()),
        ("1", "d1")
    );
    assert_eq!(done.json()["state"], "enabled");
}

#[tokio::test]
async fn the_secret_of_a_webhook_is_rotated() {
    let server = Server::start().await;
    let rotate = ["device", "rotate-secret", "1", "d1"];
    let text = herald(&server.url, &rotate).await.ok().stdout;
    assert!(
        text.contains("shown only once: whsec_made") && text.contains("signs too until 2026-01-31T10:00:00Z"),
        "{text}"
    );
    let request: RotateWebhookSecretRequest = server.call();
    assert_eq!(
        (request.user_id.as_str(), request.device_id.as_str()),
        ("1", "d1")
    );
    assert_eq!(
        (request.secret.as_str(), request.overlap.unwrap().seconds),
        ("", 86_400)
    );

    let own = [&rotate[..], &["--secret", "-", "--overlap", "0s", "-o", "json"]].concat();
    let done = herald_with_input(&server.url, &own, "whsec_own\n").await.ok();
    let request = server.calls::<RotateWebhookSecretRequest>().remove(1);
    assert_eq!(
        (request.secret.as_str(), request.overlap.unwrap().seconds),
        ("whsec_own", 0)
    );
    assert!(done.json().get("secret").is_none());
}

#[tokio::test]
async fn only_given_preferences_change() {
    let server = Server::start().await;
    let done = herald(&server.url, &["prefs", "get", "1", "-o", "json"])
        .await
        .ok();
    assert_eq!(
        done.stdout,
        "{\"user_id\":\"1\",\"push_enabled\":true,\"muted_author_ids\":[\"42\"]}\n"
    );

    let arguments = [
        "prefs", "set", "1", "--push", "off", "--mute", "7", "--mute", "8", "--unmute", "9",
    ];
    let done = herald(&server.url, &arguments).await.ok();
    assert!(
        done.stdout.contains("push   off") && done.stdout.contains("muted  7, 8"),
        "{done:?}"
    );
    herald(&server.url, &["prefs", "set", "1", "--mute", "7"])
        .await
        .ok();
    let requests: Vec<UpdatePreferencesRequest> = server.calls();
    assert_eq!(requests[0].preferences, Some(Preferences::default()));
    assert_eq!(requests[0].update_mask.as_ref().unwrap().paths, ["push_enabled"]);
    assert_eq!(requests[0].mute_author_ids, ["7", "8"]);
    assert_eq!(requests[0].unmute_author_ids, ["9"]);
    assert_eq!(
        (&requests[1].preferences, &requests[1].update_mask),
        (&None, &None)
    );
}

#[tokio::test]
async fn pages_and_time_ranges_are_sent() {
    let server = Server::start().await;
    herald(
        &server.url,
        &["timeline", "1", "--page-size", "-1", "--page-token", "-abc"],
    )
    .await
    .ok();
    let request: ListTimelineRequest = server.call();
    assert_eq!((request.page_size, request.page_token.as_str()), (-1, "-abc"));

    let arguments = [
        "delivery",
        "17",
        "--recipients",
        "push",
        "--state",
        "dead",
        "--page-size",
        "5",
        "-o",
        "json",
    ];
    let done = herald(&server.url, &arguments).await.ok();
    assert_eq!(
        done.stdout,
        "{\"recipients\":[{\"user_id\":\"5\",\"state\":\"dead\"}],\"next_page_token\":\"\"}\n"
    );
    let request: ListRecipientsRequest = server.call();
    assert_eq!((request.post_id, request.page_size), (17, 5));
    assert_eq!(request.state(), DeliveryState::Dead);

    herald(&server.url, &["stats", "17"]).await.ok();
    assert_eq!(server.call::<GetPostStatsRequest>().post_id, 17);
    let arguments = [
        "stats",
        "--since",
        "2026-01-31T08:00:00Z",
        "--until",
        "2026-01-31T09:00:00+01:00",
    ];
    herald(&server.url, &arguments).await.ok();
    let request: GetTotalsRequest = server.call();
    assert_eq!(request.start_time.unwrap().seconds, 1_769_846_400);
    assert_eq!(request.end_time.unwrap().seconds, 1_769_846_400);
}
