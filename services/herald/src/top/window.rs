//! Rates and quantiles of the last seconds, from the differences of readings.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::samples::{Buckets, INFINITE, Samples};

/// The time that rates and latencies are about.
pub(super) const WINDOW: Duration = Duration::from_secs(30);

/// The readings of the window.
#[derive(Default)]
pub(super) struct Window {
    /// The last reading of each process.
    last: BTreeMap<String, (Instant, Samples)>,
    /// What happened between two readings, with the time of the second one.
    steps: VecDeque<Step>,
}

struct Step {
    at: Instant,
    /// Time since the reading before.
    elapsed: Duration,
    samples: Samples,
}

/// What happened in the window. `None`: no process that counts it has been read twice.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Activity {
    pub(super) posts_per_second: Option<f64>,
    pub(super) timeline_deliveries_per_second: Option<f64>,
    pub(super) pushes_per_second: Option<f64>,
    pub(super) accept_to_visible: Option<Buckets>,
    pub(super) accept_to_push: Option<Buckets>,
}

impl Window {
    /// Adds a reading of all processes that answered, each with the time of its answer.
    pub(super) fn add(&mut self, now: Instant, processes: Vec<(String, Instant, Samples)>) {
        let mut step = Samples::default();
        let mut elapsed = Duration::ZERO;
        let mut last = BTreeMap::new();
        for (name, at, samples) in processes {
            if let Some((before, earlier)) = self.last.get(&name) {
                elapsed = elapsed.max(at.saturating_duration_since(*before));
                sum(&mut step, &difference(&samples, earlier));
            }
            last.insert(name, (at, samples));
        }
        self.last = last;
        if !elapsed.is_zero() {
            self.steps.push_back(Step {
                at: now,
                elapsed,
                samples: step,
            });
        }
        while self
            .steps
            .front()
            .is_some_and(|step| now.saturating_duration_since(step.at) >= WINDOW)
        {
            self.steps.pop_front();
        }
    }

    /// What happened in the window.
    pub(super) fn activity(&self) -> Activity {
        let mut all = Samples::default();
        let mut elapsed = Duration::ZERO;
        for step in &self.steps {
            sum(&mut all, &step.samples);
            elapsed += step.elapsed;
        }
        let rate = |count: Option<f64>| Some(count? / elapsed.as_secs_f64().max(0.001));
        Activity {
            posts_per_second: rate(all.posts),
            timeline_deliveries_per_second: rate(all.timeline_deliveries),
            pushes_per_second: rate(all.pushes),
            accept_to_visible: all.accept_to_visible,
            accept_to_push: all.accept_to_push,
        }
    }
}

/// What a process counted since an earlier reading; everything if it was started in between.
fn difference(now: &Samples, earlier: &Samples) -> Samples {
    let number = |now: Option<f64>, earlier: Option<f64>| {
        let (now, earlier) = (now?, earlier.unwrap_or(0.0));
        Some(if now < earlier { now } else { now - earlier })
    };
    let buckets = |now: &Option<Buckets>, earlier: &Option<Buckets>| {
        let now = now.as_ref()?;
        let earlier = earlier.as_ref().filter(|earlier| earlier.total() <= now.total());
        let before = |bound| earlier.and_then(|earlier| earlier.counts.get(bound)).copied();
        let counts = now
            .counts
            .iter()
            .map(|(bound, count)| (*bound, count - before(bound).unwrap_or(0.0)));
        Some(Buckets {
            counts: counts.collect(),
        })
    };
    Samples {
        posts: number(now.posts, earlier.posts),
        timeline_deliveries: number(now.timeline_deliveries, earlier.timeline_deliveries),
        pushes: number(now.pushes, earlier.pushes),
        accept_to_visible: buckets(&now.accept_to_visible, &earlier.accept_to_visible),
        accept_to_push: buckets(&now.accept_to_push, &earlier.accept_to_push),
    }
}

fn sum(all: &mut Samples, one: &Samples) {
    let number = |all: &mut Option<f64>, one: Option<f64>| {
        if let Some(one) = one {
            *all.get_or_insert_default() += one;
        }
    };
    let buckets = |all: &mut Option<Buckets>, one: &Option<Buckets>| {
        if let Some(one) = one {
            let all = all.get_or_insert_default();
            for (bound, count) in &one.counts {
                *all.counts.entry(*bound).or_default() += count;
            }
        }
    };
    number(&mut all.posts, one.posts);
    number(&mut all.timeline_deliveries, one.timeline_deliveries);
    number(&mut all.pushes, one.pushes);
    buckets(&mut all.accept_to_visible, &one.accept_to_visible);
    buckets(&mut all.accept_to_push, &one.accept_to_push);
}

impl Buckets {
    /// All observations.
    pub(super) fn total(&self) -> f64 {
        self.counts.get(&INFINITE).copied().unwrap_or(0.0)
    }

    /// The value that a share of the observations doesn't exceed, seconds: by linear interpolation in its bucket. The
    /// greatest finite bound if it is above that; `None` without an observation.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let rank = self.total() * share;
        if rank <= 0.0 {
            return None;
        }
        let mut below = (0.0, 0.0);
        for (bound, count) in &self.counts {
            let upper = if *bound == INFINITE {
                below.0
            } else {
                *bound as f64 / 1e9
            };
            if *count >= rank {
                let (lower, before) = below;
                let inside = (count - before).max(f64::MIN_POSITIVE);
                return Some(lower + (upper - lower) * ((rank - before) / inside).clamp(0.0, 1.0));
            }
            below = (upper, *count);
        }
        None
    }

    /// The share of the observations up to a bound; `None` without an observation, or if no bucket ends there.
    pub(super) fn share_within(&self, bound: Duration) -> Option<f64> {
        let total = self.total();
        let count = self.counts.get(&bound.as_nanos())?;
        (total > 0.0).then(|| count / total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(counts: &[(f64, f64)]) -> Buckets {
        let bound = |seconds: f64| {
            if seconds.is_infinite() {
                INFINITE
            } else {
                (seconds * 1e9).round() as u128
            }
        };
        Buckets {
            counts: counts
                .iter()
                .map(|(seconds, count)| (bound(*seconds), *count))
                .collect(),
        }
    }

    #[test]
    fn quantiles_are_interpolated() {
        let all = buckets(&[(1.0, 50.0), (2.0, 90.0), (5.0, 98.0), (f64::INFINITY, 100.0)]);
        let near = |share: f64, expected: f64| {
            let found = all.quantile(share).unwrap();
            assert!((found - expected).abs() < 1e-9, "{share}: {found}");
        };
        near(0.25, 0.5);
        near(0.5, 1.0);
        near(0.7, 1.5);
        near(0.94, 3.5);
        // Above the greatest bound.
        near(0.99, 5.0);
        assert_eq!(all.share_within(Duration::from_secs(5)), Some(0.98));
        assert_eq!(all.share_within(Duration::from_secs(3)), None);
        let none = buckets(&[(1.0, 0.0), (f64::INFINITY, 0.0)]);
        assert_eq!(
            (none.quantile(0.5), none.share_within(Duration::from_secs(1))),
            (None, None)
        );
    }

    fn samples(posts: f64, visible: f64) -> Samples {
        Samples {
            posts: Some(posts),
            accept_to_visible: Some(buckets(&[(1.0, visible), (f64::INFINITY, visible)])),
            ..Samples::default()
        }
    }

    #[test]
    fn rates_are_differences_over_the_window() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut window = Window::default();
        window.add(at(0), vec![("a".into(), at(0), samples(100.0, 10.0))]);
        assert_eq!(window.activity(), Activity::default());
        // A second process: its history isn't an event of the window.
        window.add(
            at(2),
            vec![
                ("a".into(), at(2), samples(120.0, 12.0)),
                ("b".into(), at(2), samples(5_000.0, 700.0)),
            ],
        );
        assert_eq!(window.activity().posts_per_second, Some(10.0));
        assert_eq!(
            window.activity().accept_to_visible.map(|all| all.total()),
            Some(2.0)
        );
        // One that was started again counts from zero.
        window.add(
            at(4),
            vec![
                ("a".into(), at(4), samples(8.0, 1.0)),
                ("b".into(), at(4), samples(5_012.0, 701.0)),
            ],
        );
        let activity = window.activity();
        assert_eq!(activity.posts_per_second, Some(10.0));
        assert_eq!(activity.accept_to_visible.map(|all| all.total()), Some(4.0));
        assert_eq!(activity.pushes_per_second, None);
        // A process that doesn't answer isn't one that does nothing.
        window.add(at(40), vec![]);
        assert_eq!(window.activity().posts_per_second, None);
    }
}
