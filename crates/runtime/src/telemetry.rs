//! Logs to stderr, and optional traces over OTLP.

use std::io;
use std::time::Duration;

use herald_secret::SecretUrl;
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

/// `service.name` of the traces, unless `OTEL_SERVICE_NAME` is set.
pub const SERVICE_NAME: &str = "herald";

/// Timeout of one export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of the last export at the end of the process.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// Standard OpenTelemetry variables with the endpoint of the collector; the first one that is set applies.
const ENDPOINT_VARIABLES: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// Variables with the log filter in `RUST_LOG` syntax; the first one that is set applies.
pub const LOG_VARIABLES: [&str; 2] = ["HERALD_LOG", "RUST_LOG"];

/// Variable with the filter of exported spans in `RUST_LOG` syntax; independent of the log filter.
const TRACE_FILTER_VARIABLE: &str = "HERALD_TRACE_FILTER";

/// Default filter of exported spans. Excludes the transport of the exporter because each export would create spans to
/// export.
const TRACE_FILTER: &str = "info,h2=off,hyper=off,hyper_util=off,tonic=off,tower=off,opentelemetry=off";

/// Format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Human-readable text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Settings of logs and traces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Format of log lines: `text` or `json`.
    pub log_format: LogFormat,
    /// Log filter in `RUST_LOG` syntax that overrides the variables; the flag `--log`.
    pub log: Option<String>,
    /// Log filter in `RUST_LOG` syntax if `log`, `HERALD_LOG` and `RUST_LOG` are unset.
    pub log_filter: String,
    /// OTLP/gRPC endpoint of the collector, such as `http://127.0.0.1:4317`. If unset, `OTEL_EXPORTER_OTLP_ENDPOINT`
    /// applies; without an endpoint, tracing is off.
    pub otlp: Option<SecretUrl>,
    /// Additional resource attributes, such as `[["deployment.environment.name", "test"]]`.
    pub attributes: Vec<(String, String)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Text,
            log: None,
            // The mesh logs connection events too, and the store its openings.
            log_filter: "info,async_nats=warn,fjall=warn,lsm_tree=warn,sqlx::postgres::notice=warn".into(),
            otlp: None,
            attributes: Vec::new(),
        }
    }
}

/// Telemetry failed to start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A filter is not in `RUST_LOG` syntax.
    #[error("{origin} is not a valid log filter: {filter:?}")]
    Filter {
        /// The variable or setting.
        origin: &'static str,
        /// Its value.
        filter: String,
        /// The syntax error.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The exporter rejected the endpoint.
    #[error("traces can't be exported to {endpoint}")]
    Exporter {
        /// The endpoint, without its password.
        endpoint: String,
        /// The error of the exporter.
        #[source]
        source: Box<opentelemetry_otlp::ExporterBuildError>,
    },
    /// Telemetry was already started in this process.
    #[error("telemetry was already started in this process")]
    Started(#[from] tracing_subscriber::util::TryInitError),
}

/// Exports the remaining traces when it is dropped. Keep it until the end of `main`.
#[derive(Debug)]
#[must_use = "dropping the guard stops the export of traces"]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Guard {
    /// Whether traces are exported.
    pub fn is_exporting(&self) -> bool {
        self.provider.is_some()
    }

    /// Exports the remaining traces for up to 3 s without blocking a runtime thread.
    pub async fn shutdown(mut self) {
        if let Some(provider) = self.provider.take() {
            let flushed = tokio::task::spawn_blocking(move || flush(&provider)).await;
            if let Err(error) = flushed {
                eprintln!("herald: the remaining traces were not exported: {error}");
            }
        }
    }
}

impl Drop for Guard {
    /// Blocks for up to 3 s.
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            flush(&provider);
        }
    }
}

/// Starts logging, and tracing if an endpoint is set; installs the W3C propagator in both cases. Must be called once
/// per process, within a tokio runtime.
///
/// Without an endpoint there is no OpenTelemetry layer, and spans cost almost nothing.
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

/// Checks the settings as [`init`] does, and starts nothing. Must be called within a tokio runtime.
///
/// # Errors
/// Those of [`init`], except [`Error::Started`].
pub fn check(config: &Config) -> Result<(), Error> {
    log_filter(config)?;
    if let Some(endpoint) = endpoint(config) {
        trace_filter()?;
        exporter(&endpoint)?;
    }
    Ok(())
}

/// The endpoint of the collector: the setting, or else the OpenTelemetry variables.
pub fn endpoint(config: &Config) -> Option<String> {
    let set = config.otlp.as_ref().filter(|url| !url.is_empty());
    set.map(|url| url.expose().to_owned())
        .or_else(|| variable(&ENDPOINT_VARIABLES).map(|(_, endpoint)| endpoint))
}

/// The log layer. It ignores spans: each log line has all its fields, and formatting the fields of spans that few lines
/// show costs a busy mesh a few percent of its CPU time.
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

fn exporter(endpoint: &str) -> Result<SpanExporter, Error> {
    SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|source| Error::Exporter {
            endpoint: SecretUrl::new(endpoint).redacted(),
            source: Box::new(source),
        })
}

fn provider(endpoint: &str, config: &Config) -> Result<SdkTracerProvider, Error> {
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter(endpoint)?)
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
        // The log writer may already be closed.
        eprintln!("herald: the remaining traces were not exported: {error}");
    }
}

/// The first of the variables that is set and not empty.
fn variable(names: &[&'static str]) -> Option<(&'static str, String)> {
    names.iter().find_map(|&name| {
        std::env::var(name)
            .ok()
            .filter(|value| !value.is_empty())
            .map(|value| (name, value))
    })
}

/// Formats an error and its sources in one line.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        // The text of some errors contains their source.
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
    fn a_log_line_has_its_own_fields_and_none_of_a_span() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = Lines::default();
            let writer = {
                let lines = lines.clone();
                move || lines.clone()
            };
            let logs = logs(format, EnvFilter::new("info"), writer);
            tracing::subscriber::with_default(tracing_subscriber::registry().with(logs), || {
                let span = tracing::info_span!("process", subject = "of the span");
                assert!(span.is_disabled(), "no layer is interested");
                span.in_scope(|| {
                    tracing::warn!(sequence = 7, "message will be retried");
                    tracing::debug!("below the level");
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
