//! Invalid input is refused with an error that names the field, and changes nothing.

use harness::{Clients, Herald, Options};
use herald_proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::HERALD;

/// Asserts that the answer is INVALID_ARGUMENT and names exactly this field.
fn assert_refused<T: std::fmt::Debug>(what: &str, answer: Result<T, Status>, field: &str) {
    let status = answer.expect_err(what);
    assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
    let details = status.get_error_details();
    let fields: Vec<_> = details
        .bad_request()
        .map(|bad| {
            bad.field_violations
                .iter()
                .map(|violation| violation.field.as_str())
                .collect()
        })
        .unwrap_or_default();
    assert_eq!(fields, [field], "{what}: {status:?}");
    assert_eq!(
        details.error_info().map(|info| info.domain.as_str()),
        Some("herald.dev"),
        "{what}"
    );
}

fn valid_post() -> v1::SubmitPostRequest {
    v1::SubmitPostRequest {
        author_id: "bob".into(),
        text: "fine".into(),
        ..Default::default()
    }
}

async fn assert_post_refused(clients: &Clients, what: &str, request: v1::SubmitPostRequest, field: &str) {
    assert_refused(what, clients.posts().submit_post(request).await, field);
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_are_checked_field_by_field() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    let c = &clients;
    assert_post_refused(
        c,
        "empty text",
        v1::SubmitPostRequest {
            text: String::new(),
            ..valid_post()
        },
        "text",
    )
    .await;
    assert_post_refused(
        c,
        "long text",
        v1::SubmitPostRequest {
            text: "ü".repeat(10_001),
            ..valid_post()
        },
        "text",
    )
    .await;
    assert_post_refused(
        c,
        "no author",
        v1::SubmitPostRequest {
            author_id: String::new(),
            ..valid_post()
        },
        "author_id",
    )
    .await;
    assert_post_refused(
        c,
        "long author",
        v1::SubmitPostRequest {
            author_id: "a".repeat(129),
            ..valid_post()
        },
        "author_id",
    )
    .await;
    assert_post_refused(
        c,
        "invisible author",
        v1::SubmitPostRequest {
            author_id: "\u{200b}\u{a0}".into(),
            ..valid_post()
        },
        "author_id",
    )
    .await;
    assert_post_refused(
        c,
        "control character",
        v1::SubmitPostRequest {
            author_id: "a\u{1}".into(),
            ..valid_post()
        },
        "author_id",
    )
    .await;
    assert_post_refused(
        c,
        "request id",
        v1::SubmitPostRequest {
            request_id: "17".into(),
            ..valid_post()
        },
        "request_id",
    )
    .await;
    assert_post_refused(
        c,
        "unknown lane",
        v1::SubmitPostRequest {
            lane: 9,
            ..valid_post()
        },
        "lane",
    )
    .await;
    let ttl = Some(prost_types::Duration {
        seconds: -1,
        nanos: 0,
    });
    assert_post_refused(
        c,
        "negative ttl",
        v1::SubmitPostRequest {
            push_ttl: ttl,
            ..valid_post()
        },
        "push_ttl",
    )
    .await;
    let links = vec!["https://example.org/".into(), "javascript:alert(1)".into()];
    assert_post_refused(
        c,
        "script link",
        v1::SubmitPostRequest {
            links,
            ..valid_post()
        },
        "links[1]",
    )
    .await;

    // The longest text is accepted and gets the first id: no post above was accepted.
    let longest = v1::SubmitPostRequest {
        text: "ü".repeat(10_000),
        ..valid_post()
    };
    assert_eq!(
        clients
            .posts()
            .submit_post(longest)
            .await
            .unwrap()
            .into_inner()
            .post_id,
        1
    );

    // All invalid fields are reported at once.
    let bad = v1::SubmitPostRequest {
        lane: -1,
        ..Default::default()
    };
    let status = clients.posts().submit_post(bad).await.unwrap_err();
    let details = status.get_error_details();
    let mut fields: Vec<_> = details
        .bad_request()
        .unwrap()
        .field_violations
        .iter()
        .map(|v| v.field.as_str())
        .collect();
    fields.sort_unstable();
    assert_eq!(fields, ["author_id", "lane", "text"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn follows_pages_and_devices_are_checked() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    let follow = |follower: &str, author: &str| v1::FollowRequest {
        follow: Some(v1::Follow {
            follower_id: follower.into(),
            author_id: author.into(),
            notify: Some(true),
        }),
    };
    assert_refused(
        "oneself",
        clients.graph().follow(follow("a", "a")).await,
        "follow.author_id",
    );
    assert_refused(
        "nobody",
        clients.graph().follow(follow("", "a")).await,
        "follow.follower_id",
    );
    assert_refused(
        "no follow",
        clients.graph().follow(v1::FollowRequest { follow: None }).await,
        "follow",
    );
    for n in 0..3 {
        clients
            .graph()
            .follow(follow(&format!("reader{n}"), "writer"))
            .await
            .unwrap();
    }

    let list = |author: &str, page_size, page_token: &str| v1::ListFollowersRequest {
        author_id: author.into(),
        page_size,
        page_token: page_token.into(),
    };
    assert_refused(
        "negative page",
        clients.graph().list_followers(list("writer", -1, "")).await,
        "page_size",
    );
    let page = clients
        .graph()
        .list_followers(list("writer", 2, ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(page.follows.len(), 2);
    let token = page.next_page_token;
    assert_refused(
        "another author's token",
        clients.graph().list_followers(list("reader0", 2, &token)).await,
        "page_token",
    );
    assert_refused(
        "no token",
        clients
            .graph()
            .list_followers(list("writer", 2, "nonsense"))
            .await,
        "page_token",
    );
    let following = v1::ListFollowingRequest {
        follower_id: "writer".into(),
        page_size: 2,
        page_token: token.clone(),
    };
    assert_refused(
        "another call's token",
        clients.graph().list_following(following).await,
        "page_token",
    );
    let timeline = v1::ListTimelineRequest {
        user_id: "writer".into(),
        page_size: 0,
        page_token: token.clone(),
    };
    assert_refused(
        "another service's token",
        clients.timelines().list_timeline(timeline).await,
        "page_token",
    );
    let rest = clients
        .graph()
        .list_followers(list("writer", 2, &token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((rest.follows.len(), rest.next_page_token.as_str()), (1, ""));

    let webhook = |url: &str| v1::RegisterDeviceRequest {
        user_id: "reader0".into(),
        address: Some(v1::register_device_request::Address::Webhook(v1::Webhook {
            url: url.into(),
            secret: String::new(),
        })),
    };
    for bad in [
        "http://example.org/hook",
        "not a url",
        "ftp://example.org/hook",
        "https://127.0.0.1/hook",
        "https://[::1]/hook",
        "https://10.0.0.1/hook",
        "https://169.254.169.254/latest/meta-data",
        "https://localhost/hook",
        "https://user:password@example.org/hook",
    ] {
        assert_refused(
            bad,
            clients.devices().register_device(webhook(bad)).await,
            "webhook.url",
        );
    }
    let devices = v1::ListDevicesRequest {
        user_id: "reader0".into(),
    };
    assert!(
        clients
            .devices()
            .list_devices(devices)
            .await
            .unwrap()
            .into_inner()
            .devices
            .is_empty()
    );
}
