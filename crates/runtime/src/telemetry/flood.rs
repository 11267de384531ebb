//! Sums up floods of equal failures: of the warnings and errors of one place in the code with the same cause, some are
//! logged in full, and the rest as one line with their number.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};
use tracing_subscriber::layer::{Context, Filter};

/// Target of the lines that say what was left out. They are logged whatever the log filter is: it has let the lines
/// pass that they stand for.
pub(super) const TARGET: &str = "herald_runtime::telemetry::flood";

/// Lines of equal failures that are logged within one [`WINDOW`].
const LINES_MAX: u64 = 20;

/// Time after which equal failures are logged again.
const WINDOW: Duration = Duration::from_secs(10);

/// Causes that are told apart at one place in the code within a window; all others are taken for one. It bounds the
/// memory, and the lines of failures whose text is another one each time.
const CAUSES_MAX: usize = 64;

/// Fields that tell failures of the same place in the code apart.
const CAUSES: [&str; 3] = ["error", "reason", "reasons"];

/// Passes each event but warnings and errors beyond the limit. Clones share the state.
#[derive(Debug, Clone, Default)]
pub(super) struct FloodFilter {
    places: Arc<Mutex<HashMap<u64, Place>>>,
}

/// The failures of one place in the code, by their cause; `None`: those beyond [`CAUSES_MAX`].
type Place = HashMap<Option<u64>, Failure>;

#[derive(Debug)]
struct Failure {
    since: Instant,
    lines: u64,
    /// One of them.
    line: Line,
}

/// A log line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    level: Level,
    target: String,
    message: String,
}

/// What was left out.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    line: Line,
    lines: u64,
}

impl FloodFilter {
    /// Whether a failure is logged in full.
    fn admit(&self, place: u64, cause: u64, line: impl FnOnce() -> Line, now: Instant) -> bool {
        let mut places = self.places.lock();
        let causes = places.entry(place).or_default();
        let is_known = causes.contains_key(&Some(cause));
        let key = (is_known || causes.len() < CAUSES_MAX).then_some(cause);
        let failure = causes.entry(key).or_insert_with(|| Failure {
            since: now,
            lines: 0,
            line: line(),
        });
        failure.lines += 1;
        failure.lines <= LINES_MAX
    }

    /// Ends the windows that are as long as this, and returns what they left out.
    fn end_windows(&self, length_min: Duration, now: Instant) -> Vec<Summary> {
        let mut summaries = Vec::new();
        self.places.lock().retain(|_, causes| {
            causes.retain(|_, failure| {
                let is_over = now.duration_since(failure.since) >= length_min;
                if is_over && failure.lines > LINES_MAX {
                    summaries.push(Summary {
                        line: failure.line.clone(),
                        lines: failure.lines - LINES_MAX,
                    });
                }
                !is_over
            });
            !causes.is_empty()
        });
        summaries
    }

    /// Logs what was left out, at the end of each window.
    pub(super) async fn report(self) {
        let mut ticks = tokio::time::interval(WINDOW / 10);
        loop {
            ticks.tick().await;
            log(self.end_windows(WINDOW, Instant::now()));
        }
    }

    /// Ends all windows, and logs what they left out.
    pub(super) fn finish(&self) {
        log(self.end_windows(Duration::ZERO, Instant::now()));
    }
}

/// Logs what was left out, at the level of what it was.
fn log(summaries: Vec<Summary>) {
    for Summary { line, lines } in summaries {
        let (log_target, message, seconds) = (line.target, line.message, WINDOW.as_secs());
        if line.level == Level::ERROR {
            tracing::error!(target: TARGET, lines, line = message, log_target, seconds, "similar lines were left out");
        } else {
            tracing::warn!(target: TARGET, lines, line = message, log_target, seconds, "similar lines were left out");
        }
    }
}

impl<S> Filter<S> for FloodFilter {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN || metadata.target() == TARGET {
            return true;
        }
        let mut place = DefaultHasher::new();
        metadata.callsite().hash(&mut place);
        let mut cause = Cause::default();
        event.record(&mut cause);
        let line = || Line {
            level: *metadata.level(),
            target: metadata.target().into(),
            message: cause.message,
        };
        self.admit(place.finish(), cause.hasher.finish(), line, Instant::now())
    }
}

/// Reads the message and the cause of an event.
#[derive(Default)]
struct Cause {
    hasher: DefaultHasher,
    message: String,
}

impl Visit for Cause {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else if CAUSES.contains(&field.name()) {
            format!("{value:?}").hash(&mut self.hasher);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> Line {
        Line {
            level: Level::WARN,
            target: "herald_push".into(),
            message: message.into(),
        }
    }

    #[test]
    fn lines_beyond_the_limit_are_counted_and_a_new_window_logs_again() {
        let (flood, start) = (FloodFilter::default(), Instant::now());
        let admit = |cause, at| flood.admit(7, cause, || line(&format!("failure {cause}")), at);
        let admitted = (0..LINES_MAX + 30).filter(|_| admit(1, start)).count();
        assert_eq!(admitted as u64, LINES_MAX);
        assert!(admit(2, start), "another failure has its own limit");

        assert_eq!(flood.end_windows(WINDOW, start + WINDOW / 2), []);
        let summary = Summary {
            line: line("failure 1"),
            lines: 30,
        };
        assert_eq!(flood.end_windows(WINDOW, start + WINDOW), [summary]);
        assert!(admit(1, start + WINDOW));
    }

    #[test]
    fn causes_beyond_those_that_are_told_apart_share_one_limit() {
        let (flood, start) = (FloodFilter::default(), Instant::now());
        let admit = |place, cause| flood.admit(place, cause, || line("failed"), start);
        let causes = 100 * CAUSES_MAX as u64;
        let admitted = (0..causes).filter(|&cause| admit(7, cause)).count();
        assert_eq!(admitted, CAUSES_MAX + LINES_MAX as usize);
        assert!(admit(7, 0), "a cause that is told apart keeps its own limit");
        assert!(admit(8, causes), "another place has its own limit");
        assert_eq!(flood.places.lock()[&7].len(), CAUSES_MAX + 1);

        let summary = Summary {
            line: line("failed"),
            lines: causes - admitted as u64,
        };
        assert_eq!(flood.end_windows(WINDOW, start + WINDOW), [summary]);
        assert!(flood.places.lock().is_empty());
    }
}
