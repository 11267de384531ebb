//! What a mesh exports on `/metrics` is what docs/METRICS.md says, by the rules of names, in both text formats.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Write as _},
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use harness::{Herald, Options, Process, until};
use herald_local_stores::{Error as MissingServer, required};

use crate::{
    HERALD,
    serve_cluster::World,
    surface::{http_get, http_get_as},
};

const LIMIT: Duration = Duration::from_mins(1);

/// What Prometheus sends.
const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4";

/// What a metric can be about: a service, or a subsystem.
const PARTS: [&str; 21] = [
    "analytics",
    "archive",
    "auth",
    "audit",
    "broker",
    "build",
    "consumer",
    "deadletter",
    "disk",
    "fanout",
    "gateway",
    "graph",
    "process",
    "publish",
    "push",
    "rpc",
    "scaler",
    "store",
    "stream",
    "timeline",
    "tls",
];

/// A metric, exported or documented.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Metric {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
}

type Metrics = BTreeMap<String, Metric>;

/// The metrics of docs/METRICS.md.
fn documented() -> Metrics {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/METRICS.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `herald_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, help] = cells[..] else {
            panic!("{row}")
        };
        // The names of labels are code, their values are not.
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let metric = Metric {
            kind: kind.to_owned(),
            help: format!("{help}."),
            labels,
        };
        (name.trim_matches('`').to_owned(), metric)
    })
    .collect()
}

/// The metrics of an answer in the format of Prometheus. A metric without samples has no labels.
fn exported(answer: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in answer.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help.clone_into(&mut metrics.entry(name.to_owned()).or_default().help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            kind.clone_into(&mut metrics.entry(name.to_owned()).or_default().kind);
        } else if let Some((name, rest)) = line.strip_prefix("herald_").and_then(|rest| rest.split_once('{'))
        {
            let name = format!("herald_{name}");
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end));
            let family = family
                .filter(|family| metrics.contains_key(*family))
                .unwrap_or(&name)
                .to_owned();
            let labels = rest.split('}').next().unwrap().split(',');
            let names = labels.filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            let metric = metrics
                .get_mut(&family)
                .unwrap_or_else(|| panic!("{line}: without a type"));
            metric.labels.extend(names.filter(|label| label != "le"));
        }
    }
    metrics
}

/// Adds the metrics of another process.
fn add(all: &mut Metrics, more: Metrics) {
    for (name, metric) in more {
        all.entry(name)
            .or_insert_with(|| metric.clone())
            .labels
            .extend(metric.labels);
    }
}

/// Runs `promtool check metrics`; `None` on a machine without it.
fn promtool(text: &str) -> Option<Output> {
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let started = started.map_err(|error| {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        MissingServer::Missing {
            program: "promtool",
            searched: "PATH".into(),
            hint: "install Prometheus",
        }
    });
    let mut child = required("promtool", started)?;
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    Some(child.wait_with_output().unwrap())
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

fn check_with_promtool(answer: &str) {
    if let Some(checked) = promtool(body(answer)) {
        let said = String::from_utf8_lossy(&checked.stdout) + String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success() && said.is_empty(), "promtool: {said}");
    }
}

/// Delivers a post, and waits until all that can be read is shown.
async fn work(url: &str, http: &str) {
    let cli = async |arguments: &[&str]| {
        let arguments = [arguments, &["--output", "json"]].concat();
        harness::run_json(HERALD, &arguments, &[("HERALD_SERVER", url)]).await;
    };
    cli(&["follow", "ann", "bob"]).await;
    cli(&["post", "--author", "bob", "--text", "hi"]).await;
    cli(&["timeline", "ann"]).await;
    until(
        "the post is delivered and the broker was read",
        LIMIT,
        async || {
            let text = http_get(http, "/metrics").await;
            text.contains("herald_timeline_deliveries_total 1")
                && text.contains("herald_consumer_lag_seconds{consumer=\"redrive-push\"}")
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_documented() {
    let Some(world) = World::start().await else { return };
    let herald = Herald::start(HERALD, Options::default()).await;
    let cluster = world
        .serve(
            "gateway,archive,graph,fanout,timeline,push,analytics,deadletter",
            &[],
        )
        .await;
    let scaler = Process::start(HERALD, "scaler", &[], &world.variables()).await;
    work(&herald.url(), herald.http()).await;
    work(&cluster.url(), cluster.http()).await;
    until("the scaler has read the consumers", LIMIT, async || {
        let text = http_get(scaler.http(), "/metrics").await;
        text.contains("herald_scaler_work_seconds{")
    })
    .await;
    let mut all = Metrics::new();
    for http in [herald.http(), cluster.http(), scaler.http()] {
        let answer = http_get(http, "/metrics").await;
        check_with_promtool(&answer);
        add(&mut all, exported(&answer));
    }

    let documented = documented();
    let names = |metrics: &Metrics| metrics.keys().cloned().collect::<BTreeSet<_>>();
    let (is, should) = (names(&all), names(&documented));
    let undocumented: Vec<_> = is.difference(&should).collect();
    assert!(
        undocumented.is_empty(),
        "not in docs/METRICS.md: {undocumented:?}"
    );
    let missing: Vec<_> = should.difference(&is).collect();
    assert!(
        missing.is_empty(),
        "in docs/METRICS.md, not exported: {missing:?}"
    );
    for (name, metric) in &all {
        let mut wanted = documented[name].clone();
        if metric.labels.is_empty() {
            wanted.labels.clear();
        }
        assert_eq!(*metric, wanted, "{name} in docs/METRICS.md");
        let part = name.split('_').nth(1).unwrap_or_default();
        assert!(PARTS.contains(&part), "{name}: {part} is no part of Herald");
        assert_eq!(name.ends_with("_total"), metric.kind == "counter", "{name}");
        assert!(
            metric.kind != "histogram" || name.ends_with("_seconds"),
            "{name} has no unit"
        );
    }
    // What has samples without a failure.
    for name in [
        "herald_rpc_server_duration_seconds",
        "herald_consumer_messages_total",
        "herald_publish_messages_total",
        "herald_stream_up",
        "herald_consumer_waiting_pulls",
        "herald_store_operation_seconds",
        "herald_store_pool_connections",
        "herald_store_valkey_seconds",
        "herald_disk_free_bytes",
        "herald_process_ready",
        "herald_build_info",
    ] {
        assert!(!all[name].labels.is_empty(), "{name} has no samples");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_latency_names_a_trace_that_was_sampled() {
    let options = Options {
        // Nothing listens there: the traces are made, and can't be sent.
        variables: vec![("HERALD_TELEMETRY__OTLP".into(), "http://127.0.0.1:1".into())],
        ..Options::default()
    };
    let herald = Herald::start(HERALD, options).await;
    work(&herald.url(), herald.http()).await;
    let text = http_get_as(herald.http(), "/metrics", OPEN_METRICS).await;
    let media_type = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(text.contains(media_type), "{text}");
    let bucket = text.lines().find(|line| {
        line.starts_with("herald_timeline_accept_to_visible_seconds_bucket")
            && line.contains(" # {trace_id=\"")
    });
    let bucket = bucket.unwrap_or_else(|| panic!("no exemplar in {text}"));
    let trace_id = bucket
        .split("trace_id=\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    assert!(
        trace_id.len() == 32 && trace_id.bytes().all(|digit| digit.is_ascii_hexdigit()),
        "{bucket}"
    );
    assert!(
        text.contains("\n# UNIT herald_timeline_accept_to_visible_seconds seconds\n"),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
    // Only OpenMetrics has exemplars, units and an end.
    let text = http_get(herald.http(), "/metrics").await;
    assert!(
        text.contains("text/plain; version=0.0.4") && !text.contains("trace_id"),
        "{text}"
    );
    check_with_promtool(&text);
}

#[test]
fn promtool_finds_a_bad_name() {
    let text = "# HELP herald_push_sends Sends.\n# TYPE herald_push_sends counter\nherald_push_sends 1\n";
    if let Some(checked) = promtool(text) {
        assert!(!checked.status.success(), "{checked:?}");
    }
}

#[test]
fn labels_and_types_are_read_from_both_sides() {
    let text = "# HELP herald_a_seconds A.\n# TYPE herald_a_seconds histogram\n\
        herald_a_seconds_bucket{le=\"1\",lane=\"high\"} 1\n";
    let metric = Metric {
        kind: "histogram".into(),
        help: "A.".into(),
        labels: BTreeSet::from(["lane".into()]),
    };
    assert_eq!(exported(text)["herald_a_seconds"], metric);
    let submit = &documented()["herald_gateway_posts_accepted_total"];
    assert_eq!(submit.labels, metric.labels);
    assert_eq!(submit.kind, "counter");
}
