//! Logs to stderr, and traces over OTLP when they are wanted.

use std::io;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The name by which traces know Herald, unless `OTEL_SERVICE_NAME` says another.
pub const SERVICE_NAME: &str = "herald";

/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the last export may take at the end of the process.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// Where the collector is, by OpenTelemetry's own variables; the first that is set counts.
const ENDPOINT_VARIABLES: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// What is logged, the first that is set counts; `RUST_LOG`'s syntax.
pub const LOG_VARIABLES: [&str; 2] = ["HERALD_LOG", "RUST_LOG"];

/// Which spans are exported, in `RUST_LOG`'s syntax: independent of what is logged.
const TRACE_FILTER_VARIABLE: &str = "HERALD_TRACE_FILTER";

/// The spans that are exported unless said otherwise. The exporter's own transport is left out: its spans would be
/// exported in turn.
const TRACE_FILTER: &str = "info,h2=off,hyper=off,hyper_util=off,tonic=off,tower=off,opentelemetry=off";

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// What is logged and where traces go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How a log line looks: `text` or `json`.
    pub log_format: LogFormat,
    /// What is logged, in `RUST_LOG`'s syntax, whatever the variables say: the `--log` flag.
    pub log: Option<String>,
    /// What is logged when neither `log` nor `HERALD_LOG` nor `RUST_LOG` says it, in `RUST_LOG`'s syntax.
    pub log_filter: String,
    /// The collector's OTLP endpoint over gRPC, as `http://127.0.0.1:4317`. Unset: `OTEL_EXPORTER_OTLP_ENDPOINT`; without
    /// that no traces are made.
    pub otlp: Option<String>,
    /// More attributes of this instance, as `[["deployment.environment.name", "test"]]`.
    pub attributes: Vec<(String, String)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Text,
            log: None,
            // What it has to say of connections, the mesh says too.
            log_filter: "info,async_nats=warn".into(),
            otlp: None,
            attributes: Vec::new(),
        }
    }
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A filter is not in `RUST_LOG`'s syntax.
    #[error("{origin} is not a log filter: {filter:?}")]
    Filter {
        /// The variable or setting.
        origin: &'static str,
        /// What it says.
        filter: String,
        /// Why that is none.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The exporter refuses its endpoint.
    #[error("traces can't be exported to {endpoint}")]
    Exporter {
        /// Where to.
        endpoint: String,
        /// Why not.
        #[source]
        source: Box<opentelemetry_otlp::ExporterBuildError>,
    },
    /// Telemetry was started before in this process.
    #[error("telemetry is started already")]
    Started(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends the last traces when it is dropped. Hold it until the end of `main`.
#[derive(Debug)]
#[must_use = "dropping it ends the export of traces"]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Guard {
    /// Whether traces are exported.
    pub fn is_exporting(&self) -> bool {
        self.provider.is_some()
    }

    /// Sends the last traces, for at most 3 s, without blocking the runtime's threads.
    pub async fn shutdown(mut self) {
        if let Some(provider) = self.provider.take() {
            let flushed = tokio::task::spawn_blocking(move || flush(&provider)).await;
            if let Err(error) = flushed {
                eprintln!("herald: the last traces were not sent: {error}");
            }
        }
    }
}

impl Drop for Guard {
    /// Blocks for at most 3 s.
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            flush(&provider);
        }
    }
}

/// Starts logs, and traces if they are wanted; installs the W3C propagator in any case. Once a process, within a tokio
/// runtime.
///
/// Without an endpoint the OpenTelemetry layer is not there at all, and spans cost next to nothing.
pub fn init(config: &Config) -> Result<Guard, Error> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let log_filter = log_filter(config)?;
    let provider = match endpoint(config) {
        Some(endpoint) => Some(provider(&endpoint, config)?),
        None => None,
    };
    let traces = match &provider {
        Some(provider) => Some(
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer(SERVICE_NAME))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_filter(trace_filter()?),
        ),
        None => None,
    };
    tracing_subscriber::registry()
        .with(logs(config.log_format, log_filter, io::stderr))
        .with(traces)
        .try_init()?;
    if let Some(provider) = &provider {
        global::set_tracer_provider(provider.clone());
    }
    Ok(Guard { provider })
}

/// Where traces go: the setting, else OpenTelemetry's variables.
pub fn endpoint(config: &Config) -> Option<String> {
    let set = |text: String| Some(text).filter(|text| !text.is_empty());
    config
        .otlp
        .clone()
        .and_then(set)
        .or_else(|| variable(&ENDPOINT_VARIABLES).map(|(_, endpoint)| endpoint))
}

/// A line says itself what it is about, so spans are for traces alone: to write the fields of each into a text that hardly any line
/// shows costs a busy mesh some percent of its processors.
fn logs<S, W>(format: LogFormat, filter: EnvFilter, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync + 'static,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let filter = filter.and(filter_fn(|metadata| !metadata.is_span()));
    match format {
        LogFormat::Text => layer
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .with_filter(filter)
            .boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_filter(filter)
            .boxed(),
    }
}

fn log_filter(config: &Config) -> Result<EnvFilter, Error> {
    if let Some(filter) = &config.log {
        return parse_filter("log", filter.clone());
    }
    match variable(&LOG_VARIABLES) {
        Some((origin, filter)) => parse_filter(origin, filter),
        None => parse_filter("log_filter", config.log_filter.clone()),
    }
}

fn trace_filter() -> Result<EnvFilter, Error> {
    let filter =
        variable(&[TRACE_FILTER_VARIABLE]).map_or_else(|| TRACE_FILTER.to_owned(), |(_, filter)| filter);
    parse_filter(TRACE_FILTER_VARIABLE, filter)
}

fn parse_filter(origin: &'static str, filter: String) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(&filter).map_err(|source| Error::Filter {
        origin,
        filter,
        source,
    })
}

fn provider(endpoint: &str, config: &Config) -> Result<SdkTracerProvider, Error> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|source| Error::Exporter {
            endpoint: endpoint.to_owned(),
            source: Box::new(source),
        })?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource(config))
        .build())
}

fn resource(config: &Config) -> Resource {
    let mut resource = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ]);
    if variable(&["OTEL_SERVICE_NAME"]).is_none() {
        resource = resource.with_service_name(SERVICE_NAME);
    }
    resource
        .with_attributes(
            config
                .attributes
                .iter()
                .map(|(key, value)| KeyValue::new(key.clone(), value.clone())),
        )
        .build()
}

fn flush(provider: &SdkTracerProvider) {
    if let Err(error) = provider.shutdown_with_timeout(FLUSH_LIMIT) {
        // The log may be gone by now.
        eprintln!("herald: the last traces were not sent: {error}");
    }
}

/// The first of these variables that is set and not empty.
fn variable(names: &[&'static str]) -> Option<(&'static str, String)> {
    names.iter().find_map(|&name| {
        std::env::var(name)
            .ok()
            .filter(|value| !value.is_empty())
            .map(|value| (name, value))
    })
}

/// An error and its sources in one line, for a log.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        // Some errors show their source themselves.
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_has_its_own_fields_and_none_of_a_span() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = Lines::default();
            let writer = {
                let lines = lines.clone();
                move || lines.clone()
            };
            let logs = logs(format, EnvFilter::new("info"), writer);
            tracing::subscriber::with_default(tracing_subscriber::registry().with(logs), || {
                let span = tracing::info_span!("process", subject = "of the span");
                assert!(span.is_disabled(), "nobody wants it");
                span.in_scope(|| {
                    tracing::warn!(sequence = 7, "message will be retried");
                    tracing::debug!("not asked for");
                });
            });
            let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(
                text.contains("message will be retried") && text.contains("sequence"),
                "{text}"
            );
            assert!(
                !text.contains("process") && !text.contains("of the span"),
                "{text}"
            );
        }
    }
}
