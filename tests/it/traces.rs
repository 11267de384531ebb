//! Traces in a real Jaeger: the way of a post as one tree, linked traces for what comes later, and docs/TRACES.md.

mod all;
mod collectors;
mod documented;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use harness::{Herald, Jaeger, Options, Span, until, until_some};
use herald_proto::v1;
use herald_push_sink::{InjectedFailure, Running};
use http::StatusCode;

use documented::assert_documented;

use crate::HERALD;

const LIMIT: Duration = Duration::from_mins(1);

const AUTHOR: &str = "author-with-a-name";
const FOLLOWERS: usize = 1_000;
const DEVICES: usize = 50;
/// Every user id contains it, so no span may.
const IN_USER_IDS: &str = "with-a-name";
const CLIENT_SPAN: &str = "00f067aa0ba902b7";

/// A mesh that exports to a Jaeger, with a push sink.
struct Traced {
    jaeger: Jaeger,
    herald: Herald,
    sink: Running,
}

async fn start(variables: &[(&str, &str)]) -> Option<Traced> {
    start_with(variables, Vec::new()).await
}

async fn start_with(variables: &[(&str, &str)], mut arguments: Vec<String>) -> Option<Traced> {
    let jaeger = Jaeger::start().await?;
    let mut all: Vec<(String, String)> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    all.push(("HERALD_TELEMETRY__OTLP".into(), jaeger.otlp()));
    // The spans of one second are exported at once.
    all.push(("OTEL_BSP_SCHEDULE_DELAY".into(), "200".into()));
    arguments.push("--allow-private-endpoints".into());
    let options = Options {
        arguments,
        variables: all,
        ..Options::default()
    };
    let herald = Herald::start(HERALD, options).await;
    let sink = Running::start().await.expect("a push sink");
    Some(Traced { jaeger, herald, sink })
}

impl Traced {
    /// Lets `followers` users follow the author, the first `devices` of them with a webhook.
    async fn follow(&self, followers: usize, devices: usize) {
        let clients = self.herald.clients().await;
        let mut lines = String::new();
        for n in 0..followers {
            writeln!(lines, "{} {AUTHOR}", reader(n)).expect("a string grows");
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("follows.txt");
        std::fs::write(&file, lines).expect("the file can be written");
        let file = file.to_str().expect("a UTF-8 path");
        self.herald.cli(&["import", "follows", file]).await;
        for n in 0..devices {
            let follow = v1::Follow {
                follower_id: reader(n),
                author_id: AUTHOR.into(),
                notify: Some(true),
            };
            let request = v1::FollowRequest { follow: Some(follow) };
            clients.graph().follow(request).await.expect("a follow");
            let webhook = self.sink.webhook(&reader(n));
            let address = v1::register_device_request::Address::Webhook(v1::Webhook {
                url: webhook.url,
                secret: webhook.secret,
            });
            let device = v1::RegisterDeviceRequest {
                user_id: reader(n),
                address: Some(address),
            };
            clients.devices().register_device(device).await.expect("a device");
        }
    }

    /// Submits a post within a trace of the caller. Returns the ids of the trace and of the post.
    async fn post(&self, is_sampled: bool) -> (String, u64) {
        let trace = uuid::Uuid::new_v4().simple().to_string();
        let flags = if is_sampled { "01" } else { "00" };
        let mut request = tonic::Request::new(v1::SubmitPostRequest {
            author_id: AUTHOR.into(),
            text: "a secret text".into(),
            ..v1::SubmitPostRequest::default()
        });
        let parent = format!("00-{trace}-{CLIENT_SPAN}-{flags}");
        let parent = parent.parse().expect("an ASCII header");
        request.metadata_mut().insert("traceparent", parent);
        let clients = self.herald.clients().await;
        let accepted = clients.posts().submit_post(request).await.expect("a post");
        (trace, accepted.into_inner().post_id)
    }

    /// The spans of a trace, once it has all of these names.
    async fn trace_with(&self, trace: &str, names: &[&str]) -> Vec<Span> {
        until_some(&format!("the trace has {names:?}"), LIMIT, || async {
            let spans = self.jaeger.trace(trace).await;
            names
                .iter()
                .all(|name| spans.iter().any(|span| span.name == *name))
                .then_some(spans)
        })
        .await
    }

    /// The spans of another trace that has a span of this name, linked to the trace.
    async fn linked_trace(&self, service: &str, name: &str, to: &str) -> Vec<Span> {
        until_some(&format!("{name} is linked to the trace {to}"), LIMIT, || async {
            let spans = self.jaeger.traces_of(service).await;
            let linked = spans
                .iter()
                .find(|span| span.name == name && span.links.iter().any(|(trace, _)| trace == to))?;
            let trace = linked.trace.clone();
            Some(spans.into_iter().filter(|span| span.trace == trace).collect())
        })
        .await
    }
}

fn reader(n: usize) -> String {
    format!("reader-{n}-{IN_USER_IDS}")
}

/// The one span of this name.
fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    let [span] = found[..] else {
        panic!("{} spans {name} in {}", found.len(), tree(spans))
    };
    span
}

/// A trace for people, in the messages of failed tests.
fn tree(spans: &[Span]) -> String {
    let lines = spans.iter().map(|span| {
        let parent = spans.iter().find(|other| other.id == span.parent);
        let parent = parent.map_or(span.parent.as_str(), |parent| parent.name.as_str());
        format!(
            "\n  {} {} {} below {parent:?}",
            span.service, span.kind, span.name
        )
    });
    lines.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_one_tree_of_spans() {
    let Some(traced) = start(&[]).await else { return };
    traced.follow(FOLLOWERS, DEVICES).await;
    let (trace, post) = traced.post(true).await;
    let all = ["timeline write", "publish event.v1.settled", "push send", "POST"];
    traced.trace_with(&trace, &all).await;
    // Two channels report their outcome.
    let spans = until_some("all spans are exported", LIMIT, || async {
        let spans = traced.jaeger.trace(&trace).await;
        let events = spans
            .iter()
            .filter(|span| span.name == "publish event.v1.settled");
        let processed = spans.iter().filter(|span| span.kind == "consumer");
        (events.count() == 2 && processed.count() == 3).then_some(spans)
    })
    .await;
    assert!(spans.len() <= 20, "{} spans: {}", spans.len(), tree(&spans));

    // Name, kind, service, and name of the parent.
    let graph_call = "herald.mesh.v1.FollowerService/ExportFollowers";
    let expected = [
        ("herald.v1.PostService/SubmitPost", "server", "herald-gateway", ""),
        (
            "publish post.v1.created",
            "producer",
            "herald-gateway",
            "herald.v1.PostService/SubmitPost",
        ),
        (
            "process post.v1.created",
            "consumer",
            "herald-fanout",
            "publish post.v1.created",
        ),
        (
            "publish timeline.v1.deliver",
            "producer",
            "herald-fanout",
            "process post.v1.created",
        ),
        (
            "publish push.v1.deliver",
            "producer",
            "herald-fanout",
            "process post.v1.created",
        ),
        (
            "process timeline.v1.deliver",
            "consumer",
            "herald-timeline",
            "publish timeline.v1.deliver",
        ),
        (
            "timeline write",
            "internal",
            "herald-timeline",
            "process timeline.v1.deliver",
        ),
        (
            "process push.v1.deliver",
            "consumer",
            "herald-push",
            "publish push.v1.deliver",
        ),
        ("push send", "internal", "herald-push", "process push.v1.deliver"),
    ];
    let by_id: BTreeMap<&str, &Span> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    for (name, kind, service, parent) in expected {
        let span = one(&spans, name);
        assert_eq!((span.kind, span.service.as_str()), (kind, service), "{name}");
        match by_id.get(span.parent.as_str()) {
            Some(above) => assert_eq!(above.name, parent, "the parent of {name} in {}", tree(&spans)),
            None => assert_eq!((parent, span.parent.as_str()), ("", CLIENT_SPAN), "{name}"),
        }
    }
    let calls: Vec<_> = spans.iter().filter(|span| span.name == graph_call).collect();
    let client = calls
        .iter()
        .find(|span| span.kind == "client")
        .expect("the call of fan-out");
    let server = calls
        .iter()
        .find(|span| span.kind == "server")
        .expect("the answer of graph");
    assert_eq!(server.parent, client.id);
    assert_eq!(
        (client.service.as_str(), server.service.as_str()),
        ("herald-fanout", "herald-graph")
    );

    let requests: Vec<_> = spans.iter().filter(|span| span.name == "POST").collect();
    assert_eq!(requests.len(), 2, "a chunk shows two of its accepted requests");
    let sending = &one(&spans, "push send").id;
    for request in requests {
        assert_eq!((request.kind, &request.parent), ("client", sending));
        assert_eq!(request.attributes["http.response.status_code"], "204");
        assert_eq!(request.attributes["server.address"], "127.0.0.1");
        assert_eq!(request.attributes["herald.attempt"], "1");
    }
    for span in &spans {
        assert!(!span.is_error, "{span:?}");
        if !["POST", graph_call].contains(&span.name.as_str()) {
            assert_eq!(
                span.attributes.get("post_id"),
                Some(&post.to_string()),
                "{span:?}"
            );
        }
    }
    assert_no_private_data(&spans);
    assert_documented(&spans);

    // The archive and analytics handle batches: their spans are linked to the messages, and wait in no trace.
    for service in ["herald-archive", "herald-analytics"] {
        let batch = traced.linked_trace(service, "process POSTS", &trace).await;
        let batch = one(&batch, "process POSTS");
        assert_eq!(batch.kind, "consumer");
        assert!(batch.attributes["messaging.batch.message_count"] != "0");
        let publish = &one(&spans, "publish post.v1.created").id;
        assert!(batch.links.iter().any(|(_, span)| span == publish), "{batch:?}");
        assert_documented(std::slice::from_ref(batch));
    }
    for span in &spans {
        assert!(
            span.duration < Duration::from_secs(3),
            "nothing waits for a batch: {span:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_decision_of_the_caller_counts_and_idle_checks_have_no_traces() {
    let Some(traced) = start(&[("HERALD_TELEMETRY__SAMPLING_RATIO", "0")]).await else {
        return;
    };
    traced.follow(3, 1).await;
    let (unsampled, _) = traced.post(false).await;
    let (sampled, _) = traced.post(true).await;
    traced
        .trace_with(&sampled, &["timeline write", "push send"])
        .await;
    until("the first post is delivered too", LIMIT, || async {
        traced.sink.entries().len() == 2
    })
    .await;
    // Both posts took the same way, and the spans of the second one have arrived.
    assert!(traced.jaeger.trace(&unsampled).await.is_empty());
    let foreign: BTreeSet<String> = traced
        .jaeger
        .traces_of("herald-gateway")
        .await
        .into_iter()
        .filter(|span| span.trace != sampled)
        .map(|span| span.name)
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_later_or_again_is_linked_and_a_dead_letter_is_an_error() {
    let Some(traced) = start(&[("HERALD_PUSH__RETRY_DELAY_MS_BASE", "1000")]).await else {
        return;
    };
    traced.follow(2, 2).await;
    let fail = |n, status, times| {
        let failure = InjectedFailure {
            status,
            retry_after: None,
            times,
        };
        traced.sink.fail(&reader(n), failure);
    };
    // One device answers at the second attempt, the other one never wants the push.
    fail(0, StatusCode::SERVICE_UNAVAILABLE, Some(1));
    fail(1, StatusCode::BAD_REQUEST, None);
    let (trace, post) = traced.post(true).await;

    let first = traced
        .trace_with(&trace, &["process push.v1.deliver", "publish later.v1"])
        .await;
    let failed: Vec<_> = first.iter().filter(|span| span.name == "POST").collect();
    assert!(failed.iter().all(|span| span.is_error), "{failed:?}");
    let statuses: BTreeSet<_> = failed
        .iter()
        .map(|span| span.attributes["http.response.status_code"].as_str())
        .collect();
    assert_eq!(statuses, BTreeSet::from(["400", "503"]));

    // The device that failed waits in LATER: its copy starts a trace that is linked to the first one.
    let later = traced
        .linked_trace("herald-push", "process later.v1", &trace)
        .await;
    let (requeued, queued) = (one(&later, "process later.v1"), one(&first, "publish later.v1"));
    assert_eq!(requeued.parent, "");
    assert!(
        requeued.links.contains(&(trace.clone(), queued.id.clone())),
        "{requeued:?}"
    );
    assert_eq!(
        queued.attributes["messaging.destination.template"],
        "later.v1.wait.{stream}.{consumer}.{message}"
    );
    let later = traced.trace_with(&requeued.trace, &["push send", "POST"]).await;
    assert!(
        one(&later, "POST").attributes["herald.attempt"] == "2",
        "{}",
        tree(&later)
    );

    // The device that refuses is dead: the attempt is an error with its reason as an event.
    let dead = one(&first, "process push.v1.deliver");
    assert!(dead.is_error, "{dead:?}");
    let reasons: Vec<_> = dead
        .events
        .iter()
        .filter_map(|(_, event)| event.get("reason"))
        .collect();
    assert!(
        reasons.iter().any(|reason| reason.contains("400")),
        "{:?}",
        dead.events
    );

    // A redrive starts a trace that is linked to that of the dead letter.
    traced.sink.recover(&reader(1));
    until("there is a dead letter", LIMIT, || async {
        let listed = traced.herald.cli(&["dlq", "list"]).await;
        listed["dead_letters"]
            .as_array()
            .is_some_and(|list| !list.is_empty())
    })
    .await;
    traced.herald.cli(&["dlq", "redrive", "--all"]).await;
    let redrive = traced
        .linked_trace("herald-push", "publish redrive.v1", &trace)
        .await;
    let redriven = traced.trace_with(&redrive[0].trace, &["push send", "POST"]).await;
    assert!(!one(&redriven, "POST").is_error);
    assert_eq!(
        one(&redriven, "push send").attributes["post_id"],
        post.to_string()
    );

    let dead_letter = traced.jaeger.traces_of("herald-deadletter").await;
    for spans in [&first, &later, &redriven, &dead_letter] {
        assert_no_private_data(spans);
        assert_documented(spans);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hops_of_the_broker_are_spans() {
    let Some(traced) = start(&[("HERALD_TELEMETRY__BROKER_HOPS", "true")]).await else {
        return;
    };
    traced.follow(3, 1).await;
    let (trace, _) = traced.post(true).await;
    let hops = [
        "receive",
        "store POSTS",
        "store TIMELINE",
        "store PUSH",
        "deliver POSTS",
        "deliver TIMELINE",
    ];
    let spans = traced.trace_with(&trace, &hops).await;
    let (stored, publish) = (one(&spans, "store POSTS"), one(&spans, "publish post.v1.created"));
    let received = spans
        .iter()
        .find(|span| span.id == stored.parent)
        .expect("the arrival");
    assert_eq!(
        (received.name.as_str(), &received.parent),
        ("receive", &publish.id)
    );
    for span in [stored, received, one(&spans, "deliver TIMELINE")] {
        assert_eq!((span.service.as_str(), span.kind), ("nats-server", "internal"));
        assert!(!span.is_error, "{span:?}");
    }
    assert_no_private_data(&spans);
    assert_documented(&spans);
}

/// No user id and no text of a post.
fn assert_no_private_data(spans: &[Span]) {
    for span in spans {
        let attributes = span.attributes.iter();
        let events = span.events.iter().flat_map(|(_, attributes)| attributes);
        let texts = attributes
            .chain(events)
            .flat_map(|(key, value)| [key, value])
            .chain([&span.name]);
        for text in texts {
            assert!(
                !text.contains(IN_USER_IDS) && !text.contains("secret"),
                "{text:?} in {span:?}"
            );
        }
    }
}
