//! The export of spans: each role of a process is a service of its own in the traces, so that a trace shows which role did
//! what, also when one process has all roles.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use herald_secret::SecretUrl;
use herald_trace::{BROKER, ROLE, Sampler, SpanIds};
use opentelemetry::{KeyValue, Value};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use parking_lot::Mutex;

use super::queue::{CountedProcessor, Counts};
use super::{Config, Error, SERVICE_NAME, variable};

/// Timeout of one export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Number of roles with a name of their own. It bounds the connections to the collector.
const ROLES_MAX: usize = 32;

/// Attributes that are numbers. `tracing` records a `u64` as text, because OpenTelemetry has signed numbers alone.
const NUMBERS: [&str; 6] = [
    "post_id",
    "recipients",
    "generation",
    "herald.attempt",
    "messaging.message.body.size",
    "messaging.batch.message_count",
];

/// Attributes of the resource that say nothing about nats-server, whose spans this process makes.
const OF_PROCESS: [&str; 3] = ["service.version", "service.instance.id", "process.pid"];

/// A provider that exports to a collector. At most 2,048 spans wait for the export (`OTEL_BSP_MAX_QUEUE_SIZE`); the SDK
/// drops more, of which there is a warning a minute.
pub(super) fn provider(
    endpoint: &str,
    config: &Config,
    sampler: Sampler,
) -> Result<SdkTracerProvider, Error> {
    let resource = resource(config);
    let counts = Arc::new(Counts::from_environment());
    let exporter = RoleExporter::new(endpoint, resource.clone(), Arc::clone(&counts))?;
    Ok(SdkTracerProvider::builder()
        .with_span_processor(CountedProcessor::new(exporter, counts))
        .with_sampler(sampler)
        .with_id_generator(SpanIds::default())
        .with_resource(resource)
        .build())
}

/// Checks that the exporter accepts the endpoint.
pub(super) fn check(endpoint: &str) -> Result<(), Error> {
    let scheme = endpoint.split_once("://").map(|(scheme, _)| scheme);
    if !matches!(scheme, Some("http" | "https")) {
        return Err(Error::Endpoint {
            endpoint: SecretUrl::new(endpoint).redacted(),
        });
    }
    exporter(endpoint).map(drop)
}

/// Whether an endpoint has the port of OTLP/HTTP.
fn is_http_port(endpoint: &str) -> bool {
    endpoint.trim_end_matches('/').ends_with(":4318")
}

fn exporter(endpoint: &str) -> Result<opentelemetry_otlp::SpanExporter, Error> {
    opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|source| Error::Exporter {
            endpoint: SecretUrl::new(endpoint).redacted(),
            source: Box::new(source),
        })
}

fn resource(config: &Config) -> Resource {
    let mut resource = Resource::builder().with_attributes([
        KeyValue::new("service.namespace", SERVICE_NAME),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ]);
    if !has_own_name() {
        resource = resource.with_service_name(SERVICE_NAME);
    }
    let own = config.attributes.iter();
    resource
        .with_attributes(own.map(|(key, value)| KeyValue::new(key.clone(), value.clone())))
        .build()
}

/// Whether the operator has named the service; all roles have this name then.
fn has_own_name() -> bool {
    variable(&["OTEL_SERVICE_NAME"]).is_some()
}

/// Exports the spans of each role with a resource of its own.
#[derive(Debug)]
struct RoleExporter {
    endpoint: String,
    /// Runs the connections: the SDK exports on a thread of its own.
    runtime: tokio::runtime::Handle,
    resource: Resource,
    by_role: bool,
    /// Exporters by `service.name`; empty for spans without a role.
    exporters: Mutex<HashMap<String, opentelemetry_otlp::SpanExporter>>,
    /// Whether the last export failed: a collector that is away is logged once.
    failing: AtomicBool,
    counts: Arc<Counts>,
}

impl RoleExporter {
    fn new(endpoint: &str, resource: Resource, counts: Arc<Counts>) -> Result<Self, Error> {
        check(endpoint)?;
        Ok(Self {
            endpoint: endpoint.to_owned(),
            runtime: tokio::runtime::Handle::current(),
            resource,
            by_role: !has_own_name(),
            exporters: Mutex::default(),
            failing: AtomicBool::new(false),
            counts,
        })
    }

    /// The spans by the role whose service they belong to.
    fn split(&self, spans: Vec<SpanData>) -> HashMap<Option<String>, Vec<SpanData>> {
        let mut groups: HashMap<Option<String>, Vec<SpanData>> = HashMap::new();
        for mut span in spans {
            span.attributes.iter_mut().for_each(make_number);
            let role = span
                .attributes
                .iter()
                .position(|attribute| attribute.key.as_str() == ROLE);
            let role = role.map(|index| span.attributes.swap_remove(index).value);
            let role = match role {
                Some(Value::String(role)) if self.by_role || role.as_str() == BROKER => {
                    Some(role.as_str().to_owned())
                }
                _ => None,
            };
            groups.entry(role).or_default().push(span);
        }
        groups
    }

    /// The exporter of a role is taken out for one export: the SDK runs one export at a time.
    fn take_exporter(&self, role: Option<&str>) -> Result<(String, opentelemetry_otlp::SpanExporter), Error> {
        let mut exporters = self.exporters.lock();
        let mut name = match role {
            None | Some("") => String::new(),
            Some(BROKER) => BROKER.to_owned(),
            Some(role) => format!("{SERVICE_NAME}-{role}"),
        };
        if !exporters.contains_key(&name) && exporters.len() >= ROLES_MAX {
            name.clear();
        }
        if let Some(exporter) = exporters.remove(&name) {
            return Ok((name, exporter));
        }
        let _runtime = self.runtime.enter();
        let mut exporter = exporter(&self.endpoint)?;
        exporter.set_resource(&self.resource_of(&name));
        Ok((name, exporter))
    }

    /// The resource of a service; that of the process without a name.
    fn resource_of(&self, name: &str) -> Resource {
        if name.is_empty() {
            return self.resource.clone();
        }
        let attributes = self.resource.iter();
        let attributes = attributes.filter(|(key, _)| name != BROKER || !OF_PROCESS.contains(&key.as_str()));
        Resource::builder_empty()
            .with_attributes(attributes.map(|(key, value)| KeyValue::new(key.clone(), value.clone())))
            .with_service_name(name.to_owned())
            .build()
    }

    async fn export_group(&self, role: Option<String>, spans: Vec<SpanData>) -> OTelSdkResult {
        let taken = self.take_exporter(role.as_deref());
        let (name, exporter) = taken
            .map_err(|error| opentelemetry_sdk::error::OTelSdkError::InternalFailure(error.to_string()))?;
        let exported = exporter.export(spans).await;
        self.exporters.lock().insert(name, exporter);
        exported
    }

    fn log_change(&self, exported: &OTelSdkResult) {
        let failed = exported.is_err();
        if self.failing.swap(failed, Ordering::Relaxed) == failed {
            return;
        }
        let endpoint = SecretUrl::new(self.endpoint.as_str()).redacted();
        if let Err(error) = exported {
            tracing::warn!(
                endpoint,
                %error,
                "traces can't be exported and are dropped; check telemetry.otlp and the collector{}",
                if is_http_port(&self.endpoint) {
                    ": Herald speaks OTLP/gRPC, whose port is 4317; 4318 is that of OTLP/HTTP"
                } else {
                    ""
                }
            );
        } else {
            tracing::info!(endpoint, "traces are exported again");
        }
    }
}

/// Makes a number of an attribute that is one.
fn make_number(attribute: &mut KeyValue) {
    if let Value::String(text) = &attribute.value
        && NUMBERS.contains(&attribute.key.as_str())
        && let Ok(number) = text.as_str().parse::<i64>()
    {
        attribute.value = Value::I64(number);
    }
}

impl SpanExporter for RoleExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.counts.leave(batch.len());
        self.counts.warn();
        let groups = self.split(batch).into_iter();
        let exports = groups.map(|(role, spans)| self.export_group(role, spans));
        let exported = futures::future::join_all(exports).await.into_iter().collect();
        self.log_change(&exported);
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.counts.warn();
        let exporters = std::mem::take(&mut *self.exporters.lock());
        exporters
            .into_values()
            .try_for_each(|exporter| exporter.shutdown_with_timeout(timeout))
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Memory of this process that is in RAM, bytes; `None` on systems that don't tell it as Linux does.
    fn resident_bytes() -> Option<usize> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: usize = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib << 10)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_flood_of_spans_for_a_collector_that_hangs_takes_bounded_memory() {
        const SPANS: usize = 20_000;
        const SPAN_BYTES: usize = 16 << 10;
        // 2,048 spans that wait and 512 that are exported, with a copy of these, are 48 MiB; all spans are 312 MiB.
        const GROWTH_BYTES_MAX: usize = 128 << 20;

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (taken, mut has_taken) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                // Neither read nor closed.
                connections.push(connection);
                let _ = taken.send(true);
            }
        });
        let config = Config::default();
        let sampler = super::super::sampler::from_config(&config).unwrap();
        let provider = provider(&endpoint, &config, sampler).unwrap();
        let tracer = provider.tracer("test");
        let Some(before) = resident_bytes() else { return };
        for _ in 0..SPANS {
            let text = "x".repeat(SPAN_BYTES);
            let mut span = tracer.start("flood");
            span.set_attribute(KeyValue::new("text", text));
        }
        let grown = resident_bytes().unwrap().saturating_sub(before);
        assert!(grown < GROWTH_BYTES_MAX, "{} MiB", grown >> 20);
        tokio::time::timeout(Duration::from_mins(1), has_taken.wait_for(|taken| *taken))
            .await
            .expect("an export is tried")
            .unwrap();
        let ended =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(Duration::from_millis(100)));
        assert!(ended.await.unwrap().is_err(), "the collector never answers");
    }

    #[tokio::test]
    async fn numbers_are_numbers_and_the_broker_is_not_this_process() {
        let resource = resource(&Config::default());
        let exporter = RoleExporter::new(
            "http://127.0.0.1:1",
            resource,
            Arc::new(Counts::from_environment()),
        )
        .unwrap();
        let keys = |name: &str| -> Vec<String> {
            let resource = exporter.resource_of(name);
            resource.iter().map(|(key, _)| key.to_string()).collect()
        };
        for key in OF_PROCESS {
            assert!(keys("herald-push").contains(&key.to_owned()), "{key}");
            assert!(!keys(BROKER).contains(&key.to_owned()), "{key}");
        }
        for (key, text, value) in [
            ("post_id", "12", Value::I64(12)),
            ("chunk_id", "12", Value::String("12".into())),
            (
                "post_id",
                "18446744073709551615",
                Value::String("18446744073709551615".into()),
            ),
        ] {
            let mut attribute = KeyValue::new(key, text);
            make_number(&mut attribute);
            assert_eq!(attribute.value, value, "{key}");
        }
    }

    #[tokio::test]
    async fn an_endpoint_is_that_of_otlp_over_grpc() {
        for endpoint in ["grpc://127.0.0.1:4317", "127.0.0.1:4317"] {
            let refused = check(endpoint).unwrap_err().to_string();
            assert!(refused.contains("http://HOST:4317"), "{refused}");
        }
        assert!(
            check("http://127.0.0.1:4318").is_ok(),
            "another program can listen there"
        );
        assert!(is_http_port("http://127.0.0.1:4318/") && !is_http_port("http://127.0.0.1:4317"));
    }
}
