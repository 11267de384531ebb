//! Requests that the sink accepts and rejects.

// Test helpers outside #[test] functions unwrap too.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use herald_push_sink::{InjectedFailure, Kind, Running, Sink};
use http::StatusCode;
use jiff::Timestamp;

fn event(post: u64) -> String {
    let time = Timestamp::now();
    format!(
        r#"{{"type":"post.created","timestamp":"{time}","data":{{"post_id":{post},"author_id":"a","recipient_id":"r","text":"t","links":[],"accepted_time":"{time}"}}}}"#
    )
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .build()
        .unwrap()
}

async fn webhook(sink: &Sink, name: &str, body: String, secret: &[u8]) -> StatusCode {
    let signer = standardwebhooks::Webhook::from_bytes(secret.to_vec()).unwrap();
    let now = Timestamp::now().as_second();
    let signature = signer.sign("msg_1", now, body.as_bytes()).unwrap();
    let request = client()
        .post(sink.webhook(name).url)
        .header("webhook-id", "msg_1")
        .header("webhook-timestamp", now)
        .header("webhook-signature", signature)
        .body(body);
    request.send().await.unwrap().status()
}

#[tokio::test]
async fn a_signed_webhook_is_accepted_and_a_duplicate_is_counted() {
    let sink = Running::start().await.unwrap();
    let secret = sink.webhook("phone").secret_bytes;
    assert_eq!(webhook(&sink, "phone", event(7), &secret).await, 204);
    assert_eq!(webhook(&sink, "phone", event(7), &secret).await, 204);
    assert_eq!(webhook(&sink, "phone", event(8), &secret).await, 204);
    let entries = sink.wait_for(3).await;
    let received: Vec<_> = entries
        .iter()
        .map(|e| (e.kind, e.post_id, e.duplicate, &e.message_id[..]))
        .collect();
    assert_eq!(
        received,
        [
            (Kind::Webhook, 7, false, "msg_1"),
            (Kind::Webhook, 7, true, "msg_1"),
            (Kind::Webhook, 8, false, "msg_1"),
        ]
    );
    let report = client()
        .get(format!("http://{}/received", sink.address()))
        .send()
        .await
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report.bytes().await.unwrap()).unwrap();
    assert_eq!(
        (&report["received"], &report["duplicates"]),
        (&3.into(), &1.into())
    );
    assert_eq!(report["entries"][0]["name"], "phone");
}

#[tokio::test]
async fn unsigned_requests_and_malformed_events_are_rejected() {
    let sink = Running::start().await.unwrap();
    assert_eq!(webhook(&sink, "phone", event(7), b"another secret").await, 401);
    let unsigned = client()
        .post(sink.webhook("phone").url)
        .body(event(7))
        .send()
        .await
        .unwrap();
    assert_eq!(unsigned.status(), 401);
    let secret = sink.webhook("phone").secret_bytes;
    assert_eq!(webhook(&sink, "phone", "{}".into(), &secret).await, 400);
    let anonymous = client()
        .post(sink.subscription("phone").endpoint)
        .body("x")
        .send()
        .await
        .unwrap();
    assert_eq!(anonymous.status(), 401);
    let summary = sink.summary();
    assert_eq!((summary.received, summary.rejected), (0, 4));
}

#[tokio::test]
async fn injected_failures_are_returned() {
    let sink = Running::start().await.unwrap();
    let secret = sink.webhook("phone").secret_bytes;
    let failure = InjectedFailure {
        status: StatusCode::TOO_MANY_REQUESTS,
        retry_after: Some(Duration::from_secs(3)),
        times: Some(1),
    };
    sink.fail("phone", failure);
    let refused = client()
        .post(sink.webhook("phone").url)
        .body(event(7))
        .send()
        .await
        .unwrap();
    assert_eq!(
        (refused.status(), &refused.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"3".parse().unwrap())
    );
    assert_eq!(webhook(&sink, "phone", event(7), &secret).await, 204);
    sink.fail(
        "phone",
        InjectedFailure {
            times: None,
            ..failure
        },
    );
    assert_eq!(webhook(&sink, "phone", event(8), &secret).await, 429);
    assert_eq!(webhook(&sink, "phone", event(8), &secret).await, 429);
    assert_eq!(webhook(&sink, "other", event(8), &secret).await, 204);
    sink.recover("phone");
    assert_eq!(webhook(&sink, "phone", event(8), &secret).await, 204);
    assert_eq!(sink.summary().failed, 3);
}
