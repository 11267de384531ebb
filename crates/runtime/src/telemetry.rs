//! Logs to stderr, and optional traces over OTLP.

mod export;
mod flood;
mod logs;
mod queue;
mod sampler;

use std::io;
use std::time::Duration;

use herald_secret::SecretUrl;
use opentelemetry::global;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use flood::FloodFilter;

/// `service.name` of spans without a role, and the first part of that of the others, unless `OTEL_SERVICE_NAME` is set.
pub const SERVICE_NAME: &str = "herald";

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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Share of the new traces that are recorded, 0 to 1. If unset, `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`
    /// apply, and without them all traces are recorded. A call or message with a trace context keeps the decision of its
    /// sender, and a trace that is linked to another one keeps that of the other.
    pub sampling_ratio: Option<f64>,
    /// Whether recorded traces have spans of nats-server too: the arrival of each message, its storage in the stream, and
    /// its routing to other servers (message tracing, NATS ADR-41; nats-server 2.11 or later).
    pub broker_hops: bool,
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
            sampling_ratio: None,
            broker_hops: false,
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
    /// The endpoint has another scheme than `http` or `https`.
    #[error(
        "traces can't be exported to {endpoint}: the endpoint of OTLP/gRPC must be http://HOST:4317 or https://HOST:4317"
    )]
    Endpoint {
        /// The endpoint, without its password.
        endpoint: String,
    },
    /// The share of recorded traces is not from 0 to 1.
    #[error("telemetry.sampling_ratio is {0}; it must be from 0 to 1")]
    SamplingRatio(f64),
    /// An OpenTelemetry variable of the sampler is not understood.
    #[error("{variable}={value:?} is not supported; use one of {expected}")]
    Sampler {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// The supported values.
        expected: &'static str,
    },
    /// Telemetry was already started in this process.
    #[error("telemetry was already started in this process")]
    Started(#[from] tracing_subscriber::util::TryInitError),
}

/// When it is dropped, it exports the remaining traces, and logs how many lines of floods were left out since the last
/// count. Keep it until the end of `main`.
#[derive(Debug)]
#[must_use = "dropping the guard stops the export of traces"]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
    flood: FloodFilter,
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
        self.flood.finish();
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
        Some(endpoint) => Some(export::provider(
            &endpoint,
            config,
            sampler::from_config(config)?,
        )?),
        None => None,
    };
    let traces = match &provider {
        Some(provider) => Some(
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer(SERVICE_NAME))
                .with_location(false)
                .with_target(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_filter(trace_filter()?),
        ),
        None => None,
    };
    let flood = FloodFilter::default();
    tracing_subscriber::registry()
        .with(logs::layer(
            config.log_format,
            log_filter,
            flood.clone(),
            io::stderr,
        ))
        .with(traces)
        .try_init()?;
    tokio::spawn(flood.clone().report());
    if let Some(provider) = &provider {
        global::set_tracer_provider(provider.clone());
    }
    Ok(Guard { provider, flood })
}

/// Checks the settings as [`init`] does, and starts nothing. Must be called within a tokio runtime.
///
/// # Errors
/// Those of [`init`], except [`Error::Started`].
pub fn check(config: &Config) -> Result<(), Error> {
    log_filter(config)?;
    sampler::from_config(config)?;
    if let Some(endpoint) = endpoint(config) {
        trace_filter()?;
        export::check(&endpoint)?;
    }
    Ok(())
}

/// The endpoint of the collector: the setting, or else the OpenTelemetry variables.
pub fn endpoint(config: &Config) -> Option<String> {
    let set = config.otlp.as_ref().filter(|url| !url.is_empty());
    set.map(|url| url.expose().to_owned())
        .or_else(|| variable(&ENDPOINT_VARIABLES).map(|(_, endpoint)| endpoint))
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
