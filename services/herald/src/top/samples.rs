//! Reads the metrics of a process from the text of `/metrics`, in either format of Prometheus.

use std::collections::BTreeMap;

use super::names;

/// The sum of a histogram's series: observations up to each bound, and all of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Buckets {
    /// Upper bounds, ascending, each with the number of observations up to it. The last bound is infinite.
    pub(super) counts: BTreeMap<Bound, f64>,
}

/// The upper bound of a bucket, nanoseconds.
pub(super) type Bound = u128;

/// The infinite bound.
pub(super) const INFINITE: Bound = Bound::MAX;

/// The metrics of one process that the overview needs.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Samples {
    /// `None`: the process doesn't have the metric, because it lacks the role.
    pub(super) posts: Option<f64>,
    pub(super) timeline_deliveries: Option<f64>,
    pub(super) pushes: Option<f64>,
    pub(super) accept_to_visible: Option<Buckets>,
    pub(super) accept_to_push: Option<Buckets>,
}

impl Samples {
    /// Reads the text.
    pub(super) fn parse(text: &str) -> Self {
        let mut samples = Self::default();
        for line in text.lines() {
            if let Some(name) = line
                .strip_prefix("# TYPE ")
                .and_then(|rest| rest.split(' ').next())
            {
                samples.declare(name);
            } else if let Some((name, labels, value)) = sample(line) {
                samples.add(name, labels, value);
            }
        }
        samples
    }

    /// A process with any metric of a role counts what the role does, although there may be no event yet.
    fn declare(&mut self, name: &str) {
        if name.starts_with(names::OF_GATEWAY) {
            self.posts.get_or_insert_default();
        } else if name.starts_with(names::OF_TIMELINE) {
            self.timeline_deliveries.get_or_insert_default();
            self.accept_to_visible.get_or_insert_default();
        } else if name.starts_with(names::OF_PUSH) {
            self.pushes.get_or_insert_default();
            self.accept_to_push.get_or_insert_default();
        }
    }

    fn add(&mut self, name: &str, labels: &str, value: f64) {
        match name {
            names::POSTS_ACCEPTED => *self.posts.get_or_insert_default() += value,
            names::TIMELINE_DELIVERIES => *self.timeline_deliveries.get_or_insert_default() += value,
            names::PUSH_RECIPIENTS => {
                let pushes = self.pushes.get_or_insert_default();
                let (key, wanted) = names::PUSH_DELIVERED;
                if label(labels, key) == Some(wanted) {
                    *pushes += value;
                }
            }
            _ => {
                let buckets = match name.strip_suffix("_bucket") {
                    Some(names::ACCEPT_TO_VISIBLE) => &mut self.accept_to_visible,
                    Some(names::ACCEPT_TO_PUSH) => &mut self.accept_to_push,
                    _ => return,
                };
                let Some(bound) = label(labels, "le").and_then(bound) else {
                    return;
                };
                *buckets.get_or_insert_default().counts.entry(bound).or_default() += value;
            }
        }
    }
}

/// The name, the labels and the value of a line; `None` for a comment.
fn sample(line: &str) -> Option<(&str, &str, f64)> {
    if line.starts_with('#') {
        return None;
    }
    // The values of Herald's labels have no brace, and an exemplar comes after the value.
    let (name, labels, rest) = match line.split_once('{') {
        Some((name, rest)) if !name.contains(' ') => {
            let (labels, rest) = rest.split_once('}')?;
            (name, labels, rest)
        }
        _ => {
            let (name, rest) = line.split_once(' ')?;
            (name, "", rest)
        }
    };
    Some((name, labels, rest.split_whitespace().next()?.parse().ok()?))
}

/// The value of a label.
fn label<'a>(labels: &'a str, key: &str) -> Option<&'a str> {
    labels.split(',').find_map(|label| {
        let (name, value) = label.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches('"'))
    })
}

/// A bound in whole nanoseconds.
fn bound(text: &str) -> Option<Bound> {
    match text {
        "+Inf" => Some(INFINITE),
        text => text
            .parse::<f64>()
            .ok()
            .map(|seconds| (seconds * 1e9).round() as Bound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read_and_lanes_are_summed() {
        let openmetrics = "\
# HELP herald_push_accept_to_push_seconds Time.
# TYPE herald_push_accept_to_push_seconds histogram
herald_push_accept_to_push_seconds_sum{lane=\"high\"} 3.0
herald_push_accept_to_push_seconds_count{lane=\"high\"} 3
herald_push_accept_to_push_seconds_bucket{le=\"0.5\",lane=\"high\"} 2 # {trace_id=\"abc\"} 0.3 1.5
herald_push_accept_to_push_seconds_bucket{le=\"+Inf\",lane=\"high\"} 3
herald_push_accept_to_push_seconds_bucket{lane=\"low\",le=\"0.5\"} 1
herald_push_accept_to_push_seconds_bucket{lane=\"low\",le=\"+Inf\"} 1
# TYPE herald_push_recipients counter
herald_push_recipients_total{lane=\"low\",state=\"delivered\"} 7
herald_push_recipients_total{lane=\"low\",state=\"dead\"} 9
# TYPE herald_timeline_deliveries counter
herald_timeline_deliveries_total 12
# EOF
";
        let samples = Samples::parse(openmetrics);
        assert_eq!((samples.posts, samples.pushes), (None, Some(7.0)));
        assert_eq!(samples.timeline_deliveries, Some(12.0));
        let push = samples.accept_to_push.as_ref().unwrap();
        let counts: Vec<_> = push
            .counts
            .iter()
            .map(|(bound, count)| (*bound, *count))
            .collect();
        assert_eq!(counts, [(500_000_000, 3.0), (INFINITE, 4.0)]);
        let text = openmetrics
            .replace("recipients counter", "recipients_total counter")
            .replace("deliveries counter", "deliveries_total counter")
            .replace(" # {trace_id=\"abc\"} 0.3 1.5", "");
        assert_eq!(Samples::parse(&text), samples);
    }

    #[test]
    fn a_role_without_events_has_zeros_and_one_of_another_process_is_absent() {
        let samples = Samples::parse(
            "# TYPE herald_gateway_watchers gauge\nherald_gateway_watchers 3\n# TYPE other gauge\nother 1\n",
        );
        assert_eq!(
            samples,
            Samples {
                posts: Some(0.0),
                ..Samples::default()
            }
        );
    }
}
