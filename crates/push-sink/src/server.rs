//! The sink's HTTP side.

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

/// A webhook's body: 16 links of 2,048 bytes and a little text.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// RFC 8030: a push service may refuse more than this.
const WEB_PUSH_BYTES_MAX: usize = 4_096;

/// RFC 8188: salt, record size, length of the key id.
const ECE_HEADER_BYTES: usize = 21;

/// RFC 8188: a record holds a tag and at least two bytes.
const ECE_RECORD_BYTES_MIN: u32 = 18;

/// How many entries `GET /received` shows.
const SHOWN_MAX: usize = 1_000;

/// What Herald sends.
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
    if let Some(failure) = sink.failure(&name) {
        return failure.into_response();
    }
    let verified = standardwebhooks::Webhook::from_bytes(sink.keys().webhook.clone())
        .and_then(|secret| secret.verify(&body, &headers));
    if let Err(e) = verified {
        return reject(&sink, StatusCode::UNAUTHORIZED, e);
    }
    match entry(Kind::Webhook, name, &body) {
        Some(mut entry) => {
            entry.message_id = text(&headers, "webhook-id").unwrap_or_default();
            sink.record(entry);
            StatusCode::NO_CONTENT.into_response()
        }
        None => reject(
            &sink,
            StatusCode::BAD_REQUEST,
            "the body is no post.created event",
        ),
    }
}

async fn web_push(
    State(sink): State<Sink>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(failure) = sink.failure(&name) {
        return failure.into_response();
    }
    let authorization = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let now = Timestamp::now().as_second();
    if let Err(e) = vapid::check(
        authorization,
        &sink.origin(),
        now,
        sink.vapid_public_key().as_deref(),
    ) {
        return reject(&sink, StatusCode::UNAUTHORIZED, e);
    }
    let Some(ttl_seconds) = text(&headers, "ttl").and_then(|ttl| ttl.parse().ok()) else {
        return reject(&sink, StatusCode::BAD_REQUEST, "no TTL");
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
            "the body is over 4,096 bytes",
        );
    }
    let opened = open(&sink, &body);
    match opened.and_then(|opened| entry(Kind::WebPush, name, &opened)) {
        Some(mut entry) => {
            entry.message_id = text(&headers, "topic").unwrap_or_default();
            entry.urgency = text(&headers, "urgency");
            entry.ttl_seconds = Some(ttl_seconds);
            sink.record(entry);
            StatusCode::CREATED.into_response()
        }
        None => reject(
            &sink,
            StatusCode::BAD_REQUEST,
            "the body can't be decrypted to a post.created event",
        ),
    }
}

async fn received(State(sink): State<Sink>) -> Response {
    let mut entries = sink.entries();
    let entries = entries.split_off(entries.len().saturating_sub(SHOWN_MAX));
    match serde_json::to_vec(&Received {
        summary: sink.summary(),
        entries,
    }) {
        Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

/// Decrypts a message. The record size is checked here because the library takes it as it is.
fn open(sink: &Sink, body: &[u8]) -> Option<Vec<u8>> {
    let header = body.get(..ECE_HEADER_BYTES)?;
    let record_bytes = u32::from_be_bytes(header.get(16..20)?.try_into().ok()?);
    if record_bytes < ECE_RECORD_BYTES_MIN {
        return None;
    }
    let keys = sink.keys();
    web_push_native::decrypt(body.to_vec(), &keys.secret, &Auth::from(keys.auth)).ok()
}

fn entry(kind: Kind, name: String, body: &[u8]) -> Option<Entry> {
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

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn reject(sink: &Sink, status: StatusCode, reason: impl std::fmt::Display) -> Response {
    sink.reject();
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
