//! Texts of posts, addresses and keys of devices, secrets and tokens are in no line of the log, no span and no metric, also
//! when a mesh logs all that it can and everything goes wrong.

use std::time::Duration;

use async_nats::jetstream;
use base64::{Engine as _, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use harness::{Herald, Jaeger, Options, run, serve_http, until, until_some};
use herald_proto::v1::{self, register_device_request::Address};
use herald_push_sink::{InjectedFailure, Running};
use http::StatusCode;
use serde_json::Value;
use tonic::Request;

use crate::{HERALD, surface::http_get};

const LIMIT: Duration = Duration::from_mins(1);

/// Part of everything that is private.
const PRIVATE: &str = "marmalade";

const AUTHOR: &str = "bob";

/// A mesh that logs and traces all that it can.
struct Mesh {
    herald: Herald,
    jaeger: Jaeger,
    sink: Running,
    /// Answers webhooks with private data.
    talkative: String,
}

impl Mesh {
    async fn start() -> Option<Self> {
        let jaeger = Jaeger::start().await?;
        let variables = [
            ("HERALD_LOG", "debug,herald=trace"),
            ("HERALD_TRACE_FILTER", "off,herald=trace"),
            ("HERALD_TELEMETRY__LOG_FORMAT", "json"),
            ("HERALD_TELEMETRY__OTLP", &jaeger.otlp()),
            ("HERALD_TELEMETRY__BROKER_HOPS", "true"),
            ("HERALD_PUSH__RETRY_DELAY_MS_BASE", "1000"),
            ("HERALD_PUSH__VAPID_SUBJECT", "mailto:operator@example.com"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let options = Options {
            arguments: vec!["--allow-private-endpoints".into()],
            variables: variables.into(),
            ..Options::default()
        };
        Some(Self {
            herald: Herald::start(HERALD, options).await,
            jaeger,
            sink: Running::start().await.unwrap(),
            talkative: serve_private_data().await,
        })
    }

    /// Registers a device of a user who follows the author.
    async fn add(&self, user: &str, address: Address) {
        self.herald.cli(&["follow", user, AUTHOR, "--notify"]).await;
        self.register(user, address).await.unwrap();
    }

    async fn register(&self, user: &str, address: Address) -> Result<(), tonic::Status> {
        let device = v1::RegisterDeviceRequest {
            user_id: user.into(),
            address: Some(address),
        };
        let clients = self.herald.clients().await;
        let registered = clients.devices().register_device(with_token(device)).await;
        registered.map(drop)
    }

    async fn post(&self, request: v1::SubmitPostRequest) -> Result<u64, tonic::Status> {
        let clients = self.herald.clients().await;
        let posted = clients.posts().submit_post(with_token(request)).await;
        posted.map(|posted| posted.into_inner().post_id)
    }

    /// Devices that work, and devices that fail in all ways.
    async fn add_devices(&self) {
        for (name, failure) in [
            ("works", None),
            ("busy", Some((StatusCode::SERVICE_UNAVAILABLE, Some(1)))),
            ("refused", Some((StatusCode::BAD_REQUEST, None))),
            ("gone", Some((StatusCode::GONE, None))),
        ] {
            let device = format!("{PRIVATE}-{name}");
            let webhook = self.sink.webhook(&device);
            let address = webhook_at(&webhook.url, &webhook.secret);
            self.add(&format!("webhook-{name}"), address).await;
            let subscription = self.sink.subscription(&device);
            let address = Address::WebPush(v1::WebPush {
                endpoint: subscription.endpoint,
                p256dh: BASE64_URL_SAFE_NO_PAD.encode(subscription.p256dh),
                auth: BASE64_URL_SAFE_NO_PAD.encode(subscription.auth),
            });
            self.add(&format!("webpush-{name}"), address).await;
            if let Some((status, times)) = failure {
                let failure = InjectedFailure {
                    status,
                    retry_after: None,
                    times,
                };
                self.sink.fail(&device, failure);
            }
        }
        let talkative = &self.talkative;
        let closed = format!("http://127.0.0.1:1/{PRIVATE}?token={PRIVATE}");
        let plain = format!("https://{}/{PRIVATE}", self.sink.address());
        let unknown = format!("http://no-such-host.invalid/{PRIVATE}?token={PRIVATE}");
        for (user, url) in [
            ("closed", closed),
            ("plain", plain),
            ("unknown", unknown),
            ("status", format!("{talkative}/{PRIVATE}/status")),
            ("redirect", format!("{talkative}/{PRIVATE}/redirect")),
            ("garbage", format!("{talkative}/{PRIVATE}/garbage")),
        ] {
            let secret = self.sink.webhook("other").secret;
            self.add(user, webhook_at(&url, &secret)).await;
        }
    }

    /// Requests that the gateway refuses because of what is private in them.
    async fn send_refused_requests(&self) {
        let private = || PRIVATE.to_owned();
        let secret = self.sink.webhook("other").secret;
        for (url, secret) in [
            (PRIVATE, secret.as_str()),
            (&format!("http://user:{PRIVATE}@127.0.0.1:1/"), &secret),
            (&format!("ftp://127.0.0.1/{PRIVATE}"), &secret),
            ("http://127.0.0.1:1/", &format!("whsec_{PRIVATE}!")),
        ] {
            self.register("ann", webhook_at(url, secret)).await.unwrap_err();
        }
        let web_push = v1::WebPush {
            endpoint: format!("http://127.0.0.1:1/{PRIVATE}"),
            p256dh: private(),
            auth: private(),
        };
        self.register("ann", Address::WebPush(web_push))
            .await
            .unwrap_err();
        for wrong in [
            v1::SubmitPostRequest {
                text: PRIVATE.repeat(2_000),
                ..post()
            },
            v1::SubmitPostRequest {
                push_title: format!("{PRIVATE}\n"),
                ..post()
            },
            v1::SubmitPostRequest {
                links: vec![format!("{PRIVATE}://")],
                ..post()
            },
            v1::SubmitPostRequest {
                push_data: [(format!("{PRIVATE} "), private())].into(),
                ..post()
            },
        ] {
            self.post(wrong).await.unwrap_err();
        }
    }

    /// Messages that no consumer can read.
    async fn publish_garbage(&self) {
        let broker = jetstream::new(self.herald.broker().await);
        for subject in [
            "post.v1.created.normal",
            "post.v1.deleted.low",
            "fanout.v1.slice.high",
            "timeline.v1.deliver.normal",
            "timeline.v1.backfill.low",
            "push.v1.deliver.high",
            "event.v1.settled.timeline",
        ] {
            let garbage = [b"\x0a\xff\xff\xff\xff\x0f", PRIVATE.as_bytes()].concat();
            let sent = broker.publish(subject, garbage.into()).await;
            sent.unwrap().await.unwrap();
        }
    }

    async fn dead_letters(&self, state: &str) -> Vec<Value> {
        let listed = self.herald.cli(&["dlq", "list", "--state", state]).await;
        listed["dead_letters"].as_array().unwrap().clone()
    }

    /// What must be nowhere, each in the forms in which it could be written.
    fn private_texts(&self) -> Vec<String> {
        let file = |name: &str| {
            let text = std::fs::read_to_string(self.herald.data_dir().join(name)).unwrap();
            text.trim().to_owned()
        };
        let subscription = self.sink.subscription("any");
        let webhook = self.sink.webhook("any");
        let mut texts = vec![
            PRIVATE.to_owned(),
            listed(PRIVATE.as_bytes()),
            webhook.secret,
            file("vapid.key"),
            file("nats/nats-server.password"),
        ];
        for bytes in [subscription.p256dh, subscription.auth, webhook.secret_bytes] {
            texts.extend([
                BASE64_STANDARD.encode(&bytes),
                BASE64_URL_SAFE_NO_PAD.encode(&bytes),
                hex(&bytes),
                listed(&bytes),
            ]);
        }
        texts
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

/// The bytes as `Debug` writes them.
fn listed(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(u8::to_string).collect();
    bytes.join(", ")
}

fn webhook_at(url: &str, secret: &str) -> Address {
    Address::Webhook(v1::Webhook {
        url: url.into(),
        secret: secret.into(),
    })
}

fn post() -> v1::SubmitPostRequest {
    v1::SubmitPostRequest {
        author_id: AUTHOR.into(),
        text: format!("some {PRIVATE}"),
        links: vec![format!("https://example.com/{PRIVATE}")],
        media_urls: vec![format!("https://example.com/{PRIVATE}.png")],
        push_title: format!("about {PRIVATE}"),
        push_collapse_key: PRIVATE.into(),
        push_data: [(PRIVATE.to_owned(), PRIVATE.to_owned())].into(),
        // Devices that stay away have expired soon.
        push_ttl: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
        ..Default::default()
    }
}

fn with_token<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let token = format!("Bearer {PRIVATE}").parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    request
}

/// Serves HTTP: its answers are errors that have private data in them.
async fn serve_private_data() -> String {
    let answer = |path: &str| {
        let length = PRIVATE.len();
        if path.ends_with("/status") {
            format!("HTTP/1.1 400 {PRIVATE}\r\nX-Why: {PRIVATE}\r\nContent-Length: {length}\r\n\r\n{PRIVATE}")
        } else if path.ends_with("/redirect") {
            format!(
                "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/{PRIVATE}\r\nContent-Length: 0\r\n\r\n"
            )
        } else {
            format!("{PRIVATE} {PRIVATE}\r\n\r\n")
        }
    };
    serve_http(answer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_private_is_in_logs_traces_and_metrics() {
    let Some(mut mesh) = Mesh::start().await else {
        return;
    };
    mesh.add_devices().await;
    mesh.send_refused_requests().await;
    let clients = mesh.herald.clients().await;
    let watch = v1::WatchTimelineRequest {
        user_id: "webhook-works".into(),
        ..Default::default()
    };
    let mut watched = clients
        .timelines()
        .watch_timeline(watch)
        .await
        .unwrap()
        .into_inner();
    let first = mesh.post(post()).await.unwrap();
    watched.message().await.unwrap();
    mesh.publish_garbage().await;
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;

    // Refused devices, and messages that can't be read.
    let open = until_some("the dead letters are listed", LIMIT, async || {
        let open = mesh.dead_letters("open").await;
        let has = |stream: &str| open.iter().any(|one| one["stream"] == stream);
        (has("PUSH") && has("POSTS") && has("EVENTS")).then_some(open)
    })
    .await;
    for dead_letter in &open {
        let id = dead_letter["dead_letter_id"].to_string();
        mesh.herald.cli(&["dlq", "show", &id]).await;
    }
    mesh.sink.recover(&format!("{PRIVATE}-refused"));
    // Some of them fail again.
    let url = mesh.herald.operator_url();
    let server = [("HERALD_OPERATOR_SERVER", url.as_str())];
    let redriven = run(HERALD, &["dlq", "redrive", "--all"], &server).await;
    assert_eq!(redriven.code, 1, "{redriven:?}");
    mesh.herald.cli(&["timeline", "webhook-works"]).await;
    mesh.herald.cli(&["delivery", &first.to_string()]).await;
    mesh.herald
        .cli(&["delete", &first.to_string(), "--any-author"])
        .await;
    mesh.herald.kill_nats();
    until("a post is accepted again", LIMIT, async || {
        mesh.post(post()).await.is_ok()
    })
    .await;
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;

    let metrics = http_get(mesh.herald.http(), "/metrics").await;
    assert!(metrics.contains("herald_push_"), "{metrics}");
    let private = mesh.private_texts();
    drop(watched);
    assert_eq!(mesh.herald.stop().await, 0, "{}", mesh.herald.log());
    let log = mesh.herald.log();
    for line in log.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    // The log has what it is about, at the level that was asked for. Hosts of devices are shown on purpose.
    for part in [
        "\"level\":\"DEBUG\"",
        "undecodable",
        "status 400",
        "no-such-host.invalid",
    ] {
        assert!(log.contains(part), "{part} is not in {log}");
    }
    assert_free_of(&private, "the log", &log);
    assert_free_of(&private, "the metrics", &metrics);
    let services = mesh.jaeger.services().await;
    for service in [
        "herald-gateway",
        "herald-push",
        "herald-deadletter",
        "nats-server",
    ] {
        assert!(
            services.iter().any(|one| one == service),
            "{service} is not in {services:?}"
        );
    }
    for service in services {
        let traces = mesh.jaeger.text_of(&service).await;
        assert!(traces.contains("spanId"), "{service} has spans");
        let names_hosts = traces.contains("no-such-host.invalid");
        assert!(
            names_hosts || service != "herald-push",
            "the host of a failed push"
        );
        assert_free_of(&private, &format!("the traces of {service}"), &traces);
    }
}

/// Asserts that no line has any of the texts.
fn assert_free_of(texts: &[String], what: &str, lines: &str) {
    for line in lines.lines() {
        let lower = line.to_lowercase();
        let found = texts.iter().find(|text| lower.contains(&text.to_lowercase()));
        assert!(found.is_none(), "{found:?} is in {what}: {line}");
    }
}
