//! HTTP routes of the sink.

use std::time::Duration;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use web_push_native::Auth;

use crate::{Entry, InjectedFailure, Kind, Sink, Summary, vapid};

/// Limit of a request body. A webhook carries up to 16 links of 2,048 bytes and a short text.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// A push service may reject a larger message (RFC 8030 §7.2).
const WEB_PUSH_BYTES_MAX: usize = 4_096;

/// Salt, record size and length of the key id (RFC 8188 §2.1).
const ECE_HEADER_BYTES: usize = 21;

/// A record has a tag of 16 bytes and at least two more bytes (RFC 8188 §2).
const ECE_RECORD_BYTES_MIN: u32 = 18;

/// Limit of entries in the response of `GET /received`.
const RESPONSE_ENTRIES_MAX: usize = 1_000;

/// The event that Herald sends.
#[derive(Deserialize)]
struct Payload {
    r#type: String,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    post_id: u64,
    author_id: String,
    recipient_id: String,
    text: String,
    accepted_time: Timestamp,
}

#[derive(Serialize)]
struct Received {
    #[serde(flatten)]
    summary: Summary,
    entries: Vec<Entry>,
}

pub(crate) fn router(sink: Sink) -> Router {
    Router::new()
        .route("/webhook/{name}", post(webhook))
        .route("/webpush/{name}", post(web_push))
        .route("/received", get(received))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(sink)
}

async fn webhook(
    State(sink): State<Sink>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    tokio::time::sleep(sink.response_delay()).await;
    if let Some(failure) = sink.take_failure(&name) {
        return failure.into_response();
    }
    let verified = standardwebhooks::Webhook::from_bytes(sink.keys().webhook.clone())
        .and_then(|secret| secret.verify(&body, &headers));
    if let Err(e) = verified {
        return reject(&sink, StatusCode::UNAUTHORIZED, e);
    }
    match parse_entry(Kind::Webhook, name, &body) {
        Some(mut entry) => {
            entry.message_id = header_text(&headers, "webhook-id").unwrap_or_default();
            sink.record(entry);
            StatusCode::NO_CONTENT.into_response()
        }
        None => reject(
            &sink,
            StatusCode::BAD_REQUEST,
            "the body is not a post.created event",
        ),
    }
}

async fn web_push(
    State(sink): State<Sink>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    tokio::time::sleep(sink.response_delay()).await;
    if let Some(failure) = sink.take_failure(&name) {
        return failure.into_response();
    }
    let authorization = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let now = Timestamp::now().as_second();
    if let Err(e) = vapid::verify(
        authorization,
        &sink.origin(),
        now,
        sink.vapid_public_key().as_deref(),
    ) {
        return reject(&sink, StatusCode::UNAUTHORIZED, e);
    }
    let Some(ttl_seconds) = header_text(&headers, "ttl").and_then(|ttl| ttl.parse().ok()) else {
        return reject(
            &sink,
            StatusCode::BAD_REQUEST,
            "the TTL header is missing or malformed",
        );
    };
    if headers
        .get(CONTENT_ENCODING)
        .is_none_or(|encoding| encoding != "aes128gcm")
    {
        return reject(
            &sink,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body is not aes128gcm",
        );
    }
    if body.len() > WEB_PUSH_BYTES_MAX {
        return reject(
            &sink,
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is larger than 4,096 bytes",
        );
    }
    let plaintext = decrypt(&sink, &body);
    match plaintext.and_then(|plaintext| parse_entry(Kind::WebPush, name, &plaintext)) {
        Some(mut entry) => {
            entry.message_id = header_text(&headers, "topic").unwrap_or_default();
            entry.urgency = header_text(&headers, "urgency");
            entry.ttl_seconds = Some(ttl_seconds);
            sink.record(entry);
            StatusCode::CREATED.into_response()
        }
        None => reject(
            &sink,
            StatusCode::BAD_REQUEST,
            "the body can't be decrypted, or is not a post.created event",
        ),
    }
}

async fn received(State(sink): State<Sink>) -> Response {
    let mut entries = sink.entries();
    let entries = entries.split_off(entries.len().saturating_sub(RESPONSE_ENTRIES_MAX));
    match serde_json::to_vec(&Received {
        summary: sink.summary(),
        entries,
    }) {
        Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

/// Decrypts a message. The record size is checked here because the library does not check it.
fn decrypt(sink: &Sink, body: &[u8]) -> Option<Vec<u8>> {
    let header = body.get(..ECE_HEADER_BYTES)?;
    let record_bytes = u32::from_be_bytes(header.get(16..20)?.try_into().ok()?);
    if record_bytes < ECE_RECORD_BYTES_MIN {
        return None;
    }
    let keys = sink.keys();
    web_push_native::decrypt(body.to_vec(), &keys.secret, &Auth::from(keys.auth)).ok()
}

fn parse_entry(kind: Kind, name: String, body: &[u8]) -> Option<Entry> {
    let payload: Payload = serde_json::from_slice(body)
        .ok()
        .filter(|p: &Payload| p.r#type == "post.created")?;
    let received_time = Timestamp::now();
    let latency = received_time.duration_since(payload.data.accepted_time);
    Some(Entry {
        kind,
        name,
        post_id: payload.data.post_id,
        author_id: payload.data.author_id,
        recipient_id: payload.data.recipient_id,
        text: payload.data.text,
        accepted_time: payload.data.accepted_time,
        received_time,
        latency: Duration::try_from(latency).unwrap_or_default(),
        duplicate: false,
        message_id: String::new(),
        ttl_seconds: None,
        urgency: None,
    })
}

fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn reject(sink: &Sink, status: StatusCode, reason: impl std::fmt::Display) -> Response {
    sink.count_rejected();
    (status, reason.to_string()).into_response()
}

impl IntoResponse for InjectedFailure {
    fn into_response(self) -> Response {
        match self.retry_after {
            Some(after) => (self.status, [(RETRY_AFTER, after.as_secs().to_string())]).into_response(),
            None => self.status.into_response(),
        }
    }
}
