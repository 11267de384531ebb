//! The text formats of `/metrics`.

use std::fmt::Write as _;

/// The media type of OpenMetrics text.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The media type of the older text format of Prometheus, for readers that don't ask for OpenMetrics.
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Rewrites OpenMetrics text as text of the older format: that names a counter as its sample, with `_total`, has gauges for
/// information, and has no units, exemplars or end.
///
/// Values of labels have no ` # {`: they are all known beforehand.
pub(crate) fn to_prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        let written = if let Some(help) = line.strip_prefix("# HELP ") {
            // The type, in the next line, decides on the name.
            let next = lines.peek().and_then(|next| next.strip_prefix("# TYPE "));
            let suffix = next
                .and_then(|next| next.rsplit_once(' '))
                .map_or("", |(_, kind)| suffix(kind));
            let (name, help) = help.split_once(' ').unwrap_or((help, ""));
            writeln!(text, "# HELP {name}{suffix} {help}")
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.rsplit_once(' '))
        {
            let older = match kind {
                "info" | "stateset" => "gauge",
                "unknown" => "untyped",
                kind => kind,
            };
            writeln!(text, "# TYPE {name}{} {older}", suffix(kind))
        } else if line.starts_with('#') {
            Ok(())
        } else {
            let sample = line.rfind(" # {").map_or(line, |exemplar| &line[..exemplar]);
            writeln!(text, "{sample}")
        };
        // Writing to a string can't fail.
        let _ = written;
    }
    text
}

/// What the samples of a type have after the name of their metric.
fn suffix(kind: &str) -> &'static str {
    match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_the_name_of_their_samples_and_exemplars_are_left_out() {
        let open_metrics = "# HELP a_rows Rows.\n# TYPE a_rows counter\na_rows_total{t=\"x\"} 1\n\
            # HELP a_build What runs.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
            # HELP a_seconds Time.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
            a_seconds_bucket{le=\"+Inf\"} 1 # {trace_id=\"ab\"} 0.7 12.5\n# EOF\n";
        let text = "# HELP a_rows_total Rows.\n# TYPE a_rows_total counter\na_rows_total{t=\"x\"} 1\n\
            # HELP a_build_info What runs.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
            # HELP a_seconds Time.\n# TYPE a_seconds histogram\na_seconds_bucket{le=\"+Inf\"} 1\n";
        assert_eq!(to_prometheus(open_metrics), text);
    }
}
