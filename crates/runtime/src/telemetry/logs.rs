//! The log layer: one line an event, with the id of its trace; a flood of equal failures is summed up.

use std::fmt;
use std::io;

use herald_trace::sampled_trace_id;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, filter_fn};
use tracing_subscriber::fmt::format::{Format, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, fmt as log};

use super::LogFormat;
use super::flood::{FloodFilter, TARGET as FLOOD_TARGET};

/// The log layer. It ignores spans: each log line has all its fields, and formatting the fields of spans that few lines
/// show costs a busy mesh a few percent of its CPU time.
pub(super) fn layer<S, W>(
    format: LogFormat,
    filter: EnvFilter,
    flood: FloodFilter,
    writer: W,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync + 'static,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter
        .or(filter_fn(|metadata| metadata.target() == FLOOD_TARGET))
        .and(filter_fn(|metadata| !metadata.is_span()))
        .and(flood);
    match format {
        LogFormat::Text => {
            let ansi = io::IsTerminal::is_terminal(&io::stderr());
            log::layer()
                .with_writer(writer)
                .with_ansi(ansi)
                .event_format(Line {
                    format: Format::default().with_ansi(ansi),
                    with_trace_id: text_with_trace_id,
                    without_source: None,
                })
                .with_filter(filter)
                .boxed()
        }
        LogFormat::Json => {
            let format = Format::default()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false);
            log::layer()
                .with_writer(writer)
                .fmt_fields(JsonFields::new())
                .event_format(Line {
                    format,
                    with_trace_id: json_with_trace_id,
                    without_source: Some(json_without_source),
                })
                .with_filter(filter)
                .boxed()
        }
    }
}

/// A field that lines of the crate `log` alone have.
const BRIDGED: &str = "log.target";

/// Formats a line. If its trace is recorded, the line has the id of the trace.
struct Line<F> {
    format: F,
    /// Adds the id of a trace to a line without its end.
    with_trace_id: fn(&str, &str) -> String,
    /// Removes what lines of the crate `log` have of their place in the source; `None` if the format leaves it out.
    without_source: Option<fn(&str) -> String>,
}

impl<S, N, F> FormatEvent<S, N> for Line<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let trace_id = sampled_trace_id();
        let is_bridged = event.metadata().fields().field(BRIDGED).is_some();
        let without_source = self.without_source.filter(|_| is_bridged);
        if trace_id.is_none() && without_source.is_none() {
            return self.format.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        let mut line = line.trim_end_matches('\n').to_owned();
        if let Some(without_source) = without_source {
            line = without_source(&line);
        }
        if let Some(trace_id) = trace_id {
            line = (self.with_trace_id)(&line, &trace_id);
        }
        writeln!(writer, "{line}")
    }
}

fn text_with_trace_id(text: &str, trace_id: &str) -> String {
    format!("{text} trace_id={trace_id}")
}

/// The line without `log.target`, `log.file` and the like, which repeat its target and name paths of the build.
fn json_without_source(object: &str) -> String {
    let parsed = serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(object);
    let Ok(mut fields) = parsed else {
        return object.to_owned();
    };
    fields.retain(|name, _| !name.starts_with("log."));
    serde_json::Value::Object(fields).to_string()
}

fn json_with_trace_id(object: &str, trace_id: &str) -> String {
    let fields = object.strip_suffix('}').unwrap_or(object);
    format!("{fields},\"trace_id\":\"{trace_id}\"}}")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt as _;

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

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn layer_to<S>(format: LogFormat, lines: &Lines) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync + 'static,
    {
        let lines = lines.clone();
        let flood = FloodFilter::default();
        layer(format, EnvFilter::new("info"), flood, move || lines.clone())
    }

    /// Logs floods of an error and of a warning of the target `noisy`, and then what was left out of them.
    fn text_of_floods(filter: &str) -> String {
        let (lines, flood) = (Lines::default(), FloodFilter::default());
        let writer = lines.clone();
        let logs = layer(
            LogFormat::Text,
            EnvFilter::new(filter),
            flood.clone(),
            move || writer.clone(),
        );
        tracing::subscriber::with_default(tracing_subscriber::registry().with(logs), || {
            for _ in 0..50 {
                tracing::error!(target: "noisy", "an error");
                tracing::warn!(target: "noisy", "a warning");
            }
            flood.finish();
            flood.finish();
        });
        lines.text()
    }

    #[test]
    fn lines_of_the_crate_log_have_no_place_in_the_source() {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry().with(layer_to(LogFormat::Json, &lines));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(log.target = "a", log.file = "/build/a.rs", kept = 1, "bridged");
        });
        let line: serde_json::Value = serde_json::from_str(&lines.text()).unwrap();
        assert_eq!((&line["message"], &line["kept"]), (&"bridged".into(), &1.into()));
        assert!(!lines.text().contains("\"log."), "{line}");
    }

    #[test]
    fn what_was_left_out_is_told_at_its_level_whatever_the_filter_is() {
        let left_out = |text: &str, level: &str, line: &str| {
            let fields = format!("lines=30 line=\"{line}\" log_target=\"noisy\" seconds=10");
            let mut lines = text.lines().filter(|line| line.contains(&fields));
            let found = lines.next().is_some_and(|line| line.contains(level));
            found && lines.next().is_none()
        };
        for filter in ["info", "noisy=warn"] {
            let text = text_of_floods(filter);
            assert_eq!(text.lines().count(), 42, "{text}");
            assert!(left_out(&text, "ERROR", "an error"), "{text}");
            assert!(left_out(&text, "WARN", "a warning"), "{text}");
        }
        let text = text_of_floods("error");
        assert_eq!(text.lines().count(), 21, "{text}");
        assert!(left_out(&text, "ERROR", "an error"), "{text}");
        assert_eq!(text_of_floods("noisy=off"), "");
    }

    #[test]
    fn a_log_line_has_its_own_fields_and_none_of_a_span() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = Lines::default();
            let logs = layer_to(format, &lines);
            tracing::subscriber::with_default(tracing_subscriber::registry().with(logs), || {
                let span = tracing::info_span!("process", subject = "of the span");
                assert!(span.is_disabled(), "no layer is interested");
                span.in_scope(|| {
                    tracing::warn!(sequence = 7, "message will be retried");
                    tracing::debug!("below the level");
                });
            });
            let text = lines.text();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(
                text.contains("message will be retried") && text.contains("sequence"),
                "{text}"
            );
            assert!(
                !text.contains("process") && !text.contains("of the span") && !text.contains("trace_id"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_line_within_a_recorded_trace_has_its_id() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = Lines::default();
            let provider = SdkTracerProvider::builder().build();
            let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
            let subscriber = tracing_subscriber::registry()
                .with(layer_to(format, &lines))
                .with(traces);
            let trace_id = tracing::subscriber::with_default(subscriber, || {
                tracing::info_span!("process").in_scope(|| {
                    tracing::warn!(sequence = 7, "message will be retried");
                    sampled_trace_id().unwrap()
                })
            });
            let text = lines.text();
            assert_eq!(text.lines().count(), 1, "{text}");
            match format {
                LogFormat::Text => assert!(text.ends_with(&format!(" trace_id={trace_id}\n")), "{text}"),
                LogFormat::Json => {
                    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(line["trace_id"], *trace_id);
                    assert_eq!(line["sequence"], 7);
                }
            }
        }
    }

    #[test]
    fn a_flood_of_equal_failures_is_cut_and_other_failures_are_not() {
        let lines = Lines::default();
        let logs = layer_to(LogFormat::Text, &lines);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(logs), || {
            for number in 0..500 {
                tracing::warn!(number, reason = "the store is away", "message will be retried");
            }
            for number in 0..50 {
                tracing::warn!(reason = format!("failure {number}"), "message terminated");
            }
            for number in 0..5_000 {
                tracing::warn!(reason = format!("device {number} is away"), "push failed");
            }
            for _ in 0..50 {
                tracing::info!("not a failure");
            }
        });
        let text = lines.text();
        assert_eq!(text.matches("will be retried").count(), 20);
        assert_eq!(text.matches("message terminated").count(), 50);
        assert_eq!(text.matches("push failed").count(), 84);
        assert_eq!(text.matches("not a failure").count(), 50);
    }
}
