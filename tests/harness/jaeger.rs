//! A private Jaeger 2, which receives traces over OTLP and answers questions about them.

use std::{
    collections::BTreeMap,
    fs::File,
    path::PathBuf,
    process::Stdio,
    time::{Duration, SystemTime},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::until;

const START_LIMIT: Duration = Duration::from_mins(1);

/// Set to a value other than 0, it makes a missing program a failure of the tests. `.ci/run` sets it.
const REQUIRE_ALL: &str = "TESTS_REQUIRE_SERVERS";

/// A running Jaeger on loopback. Dropping it ends its process.
#[derive(Debug)]
pub struct Jaeger {
    _process: Child,
    _dir: TempDir,
    otlp: u16,
    query: u16,
}

/// A span, as Jaeger has it.
#[derive(Debug, Clone)]
pub struct Span {
    /// Trace id, hexadecimal.
    pub trace: String,
    /// Span id, hexadecimal.
    pub id: String,
    /// Span id of the parent; empty without one.
    pub parent: String,
    /// `service.name` of its resource.
    pub service: String,
    /// Name.
    pub name: String,
    /// Kind in lower case, such as `consumer`.
    pub kind: &'static str,
    /// Whether its status is an error.
    pub is_error: bool,
    /// Attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// Trace and span ids of its links.
    pub links: Vec<(String, String)>,
    /// Names and attributes of its events.
    pub events: Vec<(String, BTreeMap<String, String>)>,
    /// End minus start.
    pub duration: Duration,
}

impl Jaeger {
    /// Starts Jaeger with its memory as storage; `None` if its program is missing on this machine, after a line on
    /// standard error that says so.
    ///
    /// # Panics
    /// If it can't be started, or if its program is missing and `TESTS_REQUIRE_SERVERS` is set.
    pub async fn start() -> Option<Self> {
        let Some(program) = program() else {
            let required =
                std::env::var_os(REQUIRE_ALL).is_some_and(|value| value != *"0" && !value.is_empty());
            assert!(!required, "jaeger is not on the PATH");
            eprintln!("SKIPPED: jaeger is not on the PATH");
            return None;
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [otlp, query, query_grpc] = free_ports();
        let config = format!(
            "service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {{receivers: [otlp], processors: [], exporters: [jaeger_storage_exporter]}}
  telemetry:
    metrics: {{level: none}}
extensions:
  jaeger_storage:
    backends:
      memory: {{memory: {{max_traces: 100000}}}}
  jaeger_query:
    storage: {{traces: memory}}
    http: {{endpoint: \"127.0.0.1:{query}\"}}
    grpc: {{endpoint: \"127.0.0.1:{query_grpc}\"}}
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: \"127.0.0.1:{otlp}\"}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
"
        );
        let path = dir.path().join("jaeger.yaml");
        std::fs::write(&path, config).expect("the configuration can be written");
        let log = File::create(dir.path().join("log")).expect("a log file");
        let process = Command::new(program)
            .arg("--config")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("jaeger can be started");
        // The HTTP client wants one even for plain http. An error says that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let jaeger = Self {
            _process: process,
            _dir: dir,
            otlp,
            query,
        };
        until("jaeger answers", START_LIMIT, || async {
            jaeger.get("/api/v3/services").await.is_some()
        })
        .await;
        jaeger.into()
    }

    /// Where it receives traces, for `telemetry.otlp`.
    pub fn otlp(&self) -> String {
        format!("http://127.0.0.1:{}", self.otlp)
    }

    /// The spans of a trace that it has received so far.
    pub async fn trace(&self, id: &str) -> Vec<Span> {
        match self.get(&format!("/api/v3/traces/{id}")).await {
            Some(answer) => spans(&answer),
            None => Vec::new(),
        }
    }

    /// The services of which it has spans.
    pub async fn services(&self) -> Vec<String> {
        let answer = self.get("/api/v3/services").await.unwrap_or_default();
        let services = answer["services"].as_array().cloned().unwrap_or_default();
        services
            .iter()
            .filter_map(|service| service.as_str().map(ToOwned::to_owned))
            .collect()
    }

    /// The spans of the newest traces in which a service has a part, up to 1,000 traces.
    pub async fn traces_of(&self, service: &str) -> Vec<Span> {
        match self.get(&newest(service)).await {
            Some(answer) => spans(&answer),
            None => Vec::new(),
        }
    }

    /// As [`traces_of`](Self::traces_of): all that Jaeger tells of them, as JSON.
    pub async fn text_of(&self, service: &str) -> String {
        let answer = self.get(&newest(service)).await;
        answer.map(|answer| format!("{answer:#}")).unwrap_or_default()
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let answer = reqwest::get(format!("http://127.0.0.1:{}{path}", self.query))
            .await
            .ok()?;
        let answer = answer.error_for_status().ok()?;
        serde_json::from_str(&answer.text().await.ok()?).ok()
    }
}

/// The query for the newest traces in which a service has a part.
fn newest(service: &str) -> String {
    let rfc3339 = |time: SystemTime| {
        jiff::Timestamp::try_from(time)
            .expect("a time of today")
            .to_string()
    };
    let now = SystemTime::now();
    format!(
        "/api/v3/traces?query.service_name={service}&query.start_time_min={}&query.start_time_max={}\
         &query.num_traces=1000",
        rfc3339(now - Duration::from_hours(1)),
        rfc3339(now + Duration::from_mins(1)),
    )
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join("jaeger"))
        .find(|program| program.is_file())
}

fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("a bound address").port())
}

/// The spans of an answer in OTLP JSON.
fn spans(answer: &Value) -> Vec<Span> {
    let each = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut spans = Vec::new();
    for resource in each(&answer["result"]["resourceSpans"]) {
        let service = attributes(&resource["resource"])
            .remove("service.name")
            .unwrap_or_default();
        for scope in each(&resource["scopeSpans"]) {
            spans.extend(each(&scope["spans"]).iter().map(|span| parse(span, &service)));
        }
    }
    spans
}

fn parse(span: &Value, service: &str) -> Span {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nanos = |name: &str| {
        span[name]
            .as_str()
            .and_then(|time| time.parse().ok())
            .unwrap_or(0_u64)
    };
    let list = |name: &str| span[name].as_array().cloned().unwrap_or_default();
    Span {
        trace: text(&span["traceId"]),
        id: text(&span["spanId"]),
        parent: text(&span["parentSpanId"]),
        service: service.to_owned(),
        name: text(&span["name"]),
        kind: match span["kind"].as_u64() {
            Some(1) => "internal",
            Some(2) => "server",
            Some(3) => "client",
            Some(4) => "producer",
            Some(5) => "consumer",
            _ => "unspecified",
        },
        is_error: span["status"]["code"] == 2,
        attributes: attributes(span),
        links: list("links")
            .iter()
            .map(|link| (text(&link["traceId"]), text(&link["spanId"])))
            .collect(),
        events: list("events")
            .iter()
            .map(|event| (text(&event["name"]), attributes(event)))
            .collect(),
        duration: Duration::from_nanos(nanos("endTimeUnixNano").saturating_sub(nanos("startTimeUnixNano"))),
    }
}

fn attributes(of: &Value) -> BTreeMap<String, String> {
    let list = of["attributes"].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|attribute| {
            let value = &attribute["value"];
            let value = value.as_object().and_then(|value| value.values().next());
            let text = match value {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => String::new(),
            };
            (attribute["key"].as_str().unwrap_or_default().to_owned(), text)
        })
        .collect()
}
