//! Output of commands for given responses.

use herald_proto::v1::{
    BatchGetPostsRequest, Channel, ChannelDelivery, GetDeliveryRequest, GetDeliveryResponse,
    ListPostsRequest, ListTimelineRequest, SuppressedCount, SuppressedReason,
};
use serde_json::json;

use crate::{
    run::herald,
    server::{Server, post, time},
};

fn delivery(delivered_count: u64, planned: bool) -> GetDeliveryResponse {
    let timeline = ChannelDelivery {
        channel: Channel::Timeline.into(),
        targeted_count: 1_045,
        delivered_count,
        pending_count: 1_045 - delivered_count,
        first_delivered_time: Some(time(0)),
        last_delivered_time: Some(time(1)),
        ..ChannelDelivery::default()
    };
    let push = ChannelDelivery {
        channel: Channel::Push.into(),
        targeted_count: 3,
        suppressed_count: 3,
        suppressed_counts: [(SuppressedReason::NoDevice, 2), (SuppressedReason::Muted, 1)]
            .map(|(reason, count)| SuppressedCount {
                reason: reason.into(),
                count,
            })
            .into(),
        ..ChannelDelivery::default()
    };
    GetDeliveryResponse {
        post_id: 17,
        planned,
        channels: vec![timeline, push],
    }
}

#[tokio::test]
async fn a_timeline_is_printed_for_people_and_programs() {
    let server = Server::start().await;
    for _ in 0..2 {
        server.add_page([post(2, "second"), post(1, "first \u{1b}[2J")], "NEXT");
    }
    let text = herald(&server.url, &["timeline", "a b"]).await.ok().stdout;
    assert!(
        text.contains("107  post 2, ") && text.contains("\n  second\n"),
        "{text}"
    );
    assert!(
        text.contains("next page: herald timeline 'a b' --page-token NEXT"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text:?}");

    let json = herald(&server.url, &["timeline", "1", "--output", "json"])
        .await
        .ok()
        .json();
    let entry = json!({
        "post_id": 2, "author_id": "107", "text": "second", "links": [], "media_urls": [], "lane": "normal",
        "accepted_time": "2026-01-31T08:00:00Z", "push_title": "", "push_collapse_key": "", "push_data": {},
    });
    assert_eq!(json["entries"][0], entry);
    assert_eq!(json["next_page_token"], "NEXT");
    let empty = herald(&server.url, &["timeline", "1", "--output", "json"])
        .await
        .ok();
    assert_eq!(
        empty.stdout,
        "{\"entries\":[],\"next_page_token\":\"\",\"rebuilding\":false}\n"
    );

    server.add_rebuilding_page();
    let text = herald(&server.url, &["timeline", "1"]).await.ok().stdout;
    assert!(text.contains("the timeline is being rebuilt"), "{text}");
    server.add_rebuilding_page();
    let json = herald(&server.url, &["timeline", "1", "--all", "--output", "json"])
        .await
        .ok()
        .json();
    assert_eq!(json["rebuilding"], true);
}

#[tokio::test]
async fn posts_are_printed_by_author_and_by_id() {
    let server = Server::start().await;
    let text = herald(&server.url, &["posts", "list", "107", "--page-size", "1"])
        .await
        .ok()
        .stdout;
    assert!(text.contains("107  post 2, "), "{text}");
    assert!(
        text.contains("next page: herald posts list 107 --page-token more"),
        "{text}"
    );
    let request: ListPostsRequest = server.call();
    assert_eq!((request.author_id.as_str(), request.page_size), ("107", 1));
    let all = ["posts", "list", "107", "--all", "--output", "json"];
    let json = herald(&server.url, &all).await.ok().json();
    let ids: Vec<_> = json["posts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|post| &post["post_id"])
        .collect();
    assert_eq!(
        (ids, &json["next_page_token"]),
        (vec![&json!(2), &json!(1)], &json!(""))
    );

    // The fake server has two posts of each batch, the others are missing.
    let ids: Vec<String> = (1..=101).map(|id| id.to_string()).collect();
    let arguments = ["posts", "get", "--output", "json"].into_iter();
    let arguments: Vec<&str> = arguments.chain(ids.iter().map(String::as_str)).collect();
    let json = herald(&server.url, &arguments).await.ok().json();
    assert_eq!(json["posts"].as_array().unwrap().len(), 3);
    assert_eq!(json["missing_post_ids"].as_array().unwrap().len(), 98);
    let batches: Vec<BatchGetPostsRequest> = server.calls();
    assert_eq!(batches[0].post_ids.len(), 100);
    assert_eq!(batches[1].post_ids, [101]);
}

#[tokio::test]
async fn a_follow_is_shown_with_its_pushes() {
    let server = Server::start().await;
    let done = herald(&server.url, &["following", "1", "107"]).await.ok();
    assert_eq!(done.stdout, "1 follows 107, with pushes\n");
    let done = herald(&server.url, &["following", "1", "108", "-o", "json"])
        .await
        .ok();
    assert_eq!(
        done.stdout,
        "{\"follower_id\":\"1\",\"author_id\":\"108\",\"following\":false,\"notify\":false}\n"
    );
}

#[tokio::test]
async fn all_reads_every_page_of_a_timeline() {
    let server = Server::start().await;
    server.add_page([post(3, "c")], "two");
    server.add_page([], "three");
    server.add_page([post(2, "b"), post(1, "a")], "");
    let json = herald(&server.url, &["timeline", "1", "--all", "-o", "json"])
        .await
        .ok()
        .json();
    let ids: Vec<u64> = json["entries"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|entry| entry["post_id"].as_u64())
        .collect();
    assert_eq!(ids, [3, 2, 1]);
    assert_eq!(json["next_page_token"], "");
    let tokens: Vec<String> = server
        .calls::<ListTimelineRequest>()
        .into_iter()
        .map(|request| request.page_token)
        .collect();
    assert_eq!(tokens, ["", "two", "three"]);
}

#[tokio::test]
async fn a_repeated_page_token_is_an_error() {
    let server = Server::start().await;
    server.add_page([post(3, "c")], "again");
    server.add_page([post(3, "c")], "again");
    assert_eq!(herald(&server.url, &["timeline", "1", "--all"]).await.code, 1);
}

#[tokio::test]
async fn a_delivery_is_counted_by_channel() {
    let server = Server::start().await;
    server.set_deliveries([delivery(1_045, true)]);
    let done = herald(&server.url, &["delivery", "17", "--output", "json"])
        .await
        .ok();
    // The short names are those of earlier versions.
    assert_eq!(
        done.json(),
        json!({
            "post_id": 17,
            "planned": true,
            "channels": {
                "timeline": {
                    "targeted_count": 1045, "delivered_count": 1045, "suppressed_count": 0, "expired_count": 0,
                    "pending_count": 0, "dead_count": 0, "targeted": 1045, "delivered": 1045, "suppressed": 0,
                    "expired": 0, "pending": 0, "dead": 0, "suppressed_counts": {},
                    "first_delivered_time": "2026-01-31T08:00:00Z", "last_delivered_time": "2026-01-31T08:00:01Z",
                },
                "push": {
                    "targeted_count": 3, "delivered_count": 0, "suppressed_count": 3, "expired_count": 0,
                    "pending_count": 0, "dead_count": 0, "targeted": 3, "delivered": 0, "suppressed": 3,
                    "expired": 0, "pending": 0, "dead": 0, "suppressed_counts": {"no_device": 2, "muted": 1},
                    "first_delivered_time": null, "last_delivered_time": null,
                },
            },
        })
    );
    let text = herald(&server.url, &["delivery", "17"]).await.ok().stdout;
    assert!(text.contains("CHANNEL") && text.contains("1,045"), "{text}");
    assert!(
        text.contains("suppressed (push): no device: 2, muted: 1"),
        "{text}"
    );
}

#[tokio::test]
async fn waiting_ends_when_nothing_is_pending() {
    let server = Server::start().await;
    // All planned deliveries are delivered, but planning is not complete.
    server.set_deliveries([
        delivery(1_045, false),
        delivery(1_000, true),
        delivery(1_045, true),
    ]);
    let done = herald(&server.url, &["delivery", "17", "--wait", "-o", "json"])
        .await
        .ok();
    assert_eq!(done.json()["channels"]["timeline"]["pending_count"], 0);
    assert_eq!(server.calls::<GetDeliveryRequest>().len(), 3);
}

#[tokio::test]
async fn waiting_has_a_limit() {
    let server = Server::start().await;
    server.set_deliveries([delivery(1_000, true)]);
    let done = herald(
        &server.url,
        &["delivery", "17", "--wait", "--timeout", "100ms", "-o", "json"],
    )
    .await;
    assert_eq!(done.code, 5, "{done:?}");
    assert_eq!(done.json()["channels"]["timeline"]["pending_count"], 45);
    assert_eq!(done.error()["kind"], "timed_out");
}

#[tokio::test]
async fn an_unknown_post_is_exit_code_4() {
    let server = Server::start().await;
    let done = herald(&server.url, &["delivery", "99"]).await;
    assert_eq!(done.code, 4);
    assert!(done.stderr.contains("there is no such post"), "{done:?}");
}

#[tokio::test]
async fn totals_are_printed_by_the_hour() {
    let server = Server::start().await;
    let text = herald(&server.url, &["stats"]).await.ok().stdout;
    assert!(
        text.contains("2026-01-31 08:00") && text.lines().last().unwrap().starts_with("total"),
        "{text}"
    );
    let json = herald(&server.url, &["stats", "-o", "json"]).await.ok().json();
    assert_eq!(json["totals"]["post_count"], 3);
    assert_eq!(json["hours"][0]["start_time"], "2026-01-31T08:00:00Z");
    let json = herald(&server.url, &["stats", "17", "-o", "json"])
        .await
        .ok()
        .json();
    assert_eq!(json["totals"]["timeline_delivered_count"], 1_045);
}

#[tokio::test]
async fn lag_is_a_table() {
    let server = Server::start().await;
    let text = herald(&server.url, &["lag"]).await.ok().stdout;
    for part in ["POSTS", "1,234", "2.0 MB", "25%", "fanout-normal", "1 min"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let json = herald(&server.url, &["lag", "-o", "json"]).await.ok().json();
    assert_eq!(json["streams"][0]["consumers"][0]["pending_count"], 12);
    assert_eq!(json["streams"][0]["consumers"][0]["oldest_age_seconds"], 90.0);
}

#[tokio::test]
async fn there_is_no_colour_in_a_pipe() {
    let server = Server::start().await;
    let done = herald(&server.url, &["lag"]).await.ok();
    assert!(
        !done.stdout.contains('\u{1b}') && !done.stderr.contains('\u{1b}'),
        "{done:?}"
    );
}
