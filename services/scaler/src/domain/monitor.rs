//! Makes the state of each scope from the readings of the consumers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use herald_mesh::{Gate, consumers};
use herald_model::Lane;

use super::{
    Role, Scope, Source, State,
    history::{History, Progress, Reading},
    meter::Meter,
};

/// A reading of a consumer, and how many deliveries its messages have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) reading: Reading,
    /// Mean number of deliveries of a message.
    pub(crate) deliveries: f64,
}

/// Why a consumer has no reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The server has no such consumer, or no such stream.
    Missing { stream: String, consumer: String },
    /// The server did not answer, or could not.
    Unavailable { reason: String },
}

/// What the monitor must know of the configurations of the scaler and of the workers.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Time after the last arrival in which a scope stays active.
    pub(crate) keep_active: Duration,
    /// Assumed rate of one process of each role.
    pub(crate) rates: BTreeMap<Role, f64>,
    /// How far a measured rate may be from it.
    pub(crate) rate_factor_max: f64,
    /// Messages that one process has in flight at most, by consumer.
    pub(crate) in_flight_max: BTreeMap<&'static str, usize>,
    /// When fan-out holds a lane back.
    pub(crate) gate: Gate,
}

/// The state of each scope, or why it is not known.
pub(crate) type Snapshot = BTreeMap<Scope, Result<State, Failure>>;

/// Keeps what earlier readings tell.
#[derive(Debug)]
pub(crate) struct Monitor {
    limits: Limits,
    scopes: Vec<(Scope, Vec<Source>, Meter)>,
    histories: BTreeMap<&'static str, History>,
    held: BTreeSet<Lane>,
}

impl Monitor {
    pub(crate) fn new(limits: Limits) -> Self {
        let scopes = Scope::all().into_iter().map(|scope| {
            let assumed = limits.rates.get(&scope.role).copied().unwrap_or(1.0);
            (
                scope,
                scope.sources(),
                Meter::new(assumed, limits.rate_factor_max),
            )
        });
        Self {
            scopes: scopes.collect(),
            limits,
            histories: BTreeMap::new(),
            held: BTreeSet::new(),
        }
    }

    /// Adds one reading of every consumer.
    pub(crate) fn update(
        &mut self,
        now: Duration,
        readings: &BTreeMap<&'static str, Result<Measured, Failure>>,
    ) -> Snapshot {
        let mut progress = BTreeMap::new();
        for (consumer, read) in readings {
            let history = self.histories.entry(consumer).or_default();
            match read {
                Ok(measured) => {
                    let done = history.record(now, measured.reading, self.limits.keep_active);
                    progress.insert(*consumer, done);
                }
                Err(_) => history.interrupt(),
            }
        }
        self.update_held(readings);
        let mut snapshot = Snapshot::new();
        for (scope, sources, meter) in &mut self.scopes {
            let parts: Result<Vec<Part>, Failure> = sources
                .iter()
                .map(|source| {
                    let measured = readings.get(source.consumer).cloned().unwrap_or_else(|| {
                        let reason = format!("consumer {} was not read", source.consumer);
                        Err(Failure::Unavailable { reason })
                    })?;
                    Ok(Part {
                        source: *source,
                        measured,
                        held: measured.reading.paused
                            || source.gated_by.is_some_and(|lane| self.held.contains(&lane)),
                        in_flight_max: self.limits.in_flight_max.get(source.consumer).copied(),
                        progress: progress.get(source.consumer).copied().flatten(),
                    })
                })
                .collect();
            let state = parts.map(|parts| {
                record_rate(meter, &parts);
                state(now, &parts, &self.histories, meter.rate())
            });
            snapshot.insert(*scope, state);
        }
        snapshot
    }

    /// Does what each fan-out process does: it holds a lane back while the streams below are deep. What can't be read
    /// changes nothing, there as here.
    fn update_held(&mut self, readings: &BTreeMap<&'static str, Result<Measured, Failure>>) {
        for lane in Lane::ALL {
            let pending = |consumer| match readings.get(consumer) {
                Some(Ok(measured)) => Some(measured.reading.pending),
                _ => None,
            };
            let timeline = pending(consumers::timeline(lane));
            let (Some(timeline), Some(push)) = (timeline, pending(consumers::push(lane))) else {
                continue;
            };
            let held = self.held.contains(&lane);
            if self.limits.gate.should_pause(held, timeline.max(push)) {
                self.held.insert(lane);
            } else {
                self.held.remove(&lane);
            }
        }
    }
}

/// A consumer of a scope, as it is now.
#[derive(Debug, Clone, Copy)]
struct Part {
    source: Source,
    measured: Measured,
    /// Whether its messages wait on purpose: more workers would not take them.
    held: bool,
    in_flight_max: Option<usize>,
    progress: Option<Progress>,
}

impl Part {
    /// Number of processes that have as many messages in their hands as they can.
    fn busy_processes(&self) -> f64 {
        let in_flight_max = self.in_flight_max.unwrap_or(usize::MAX).max(1);
        (self.measured.reading.ack_pending as f64 / in_flight_max as f64).ceil()
    }
}

/// Measures the rate if there was a backlog since the last reading.
fn record_rate(meter: &mut Meter, parts: &[Part]) {
    let main = || parts.iter().filter(|part| part.source.is_main);
    let has_backlog = |part: &Part| !part.held && part.progress.is_some_and(|progress| progress.had_backlog);
    let Some(length) = main()
        .filter(|part| has_backlog(part))
        .filter_map(|part| part.progress.map(|progress| progress.length))
        .max()
    else {
        return;
    };
    let deliveries = main()
        .filter_map(|part| {
            part.progress
                .map(|progress| progress.settled as f64 * part.measured.deliveries)
        })
        .sum();
    // Processes that have several of these consumers count once.
    let processes = main().map(Part::busy_processes).fold(1.0, f64::max);
    meter.record(length, deliveries, processes);
}

fn state(
    now: Duration,
    parts: &[Part],
    histories: &BTreeMap<&'static str, History>,
    process_rate: f64,
) -> State {
    let mut state = State {
        pending: 0.0,
        arrivals: 0.0,
        process_rate,
        oldest_seconds: 0.0,
        active: false,
        held: false,
    };
    for part in parts {
        let Measured { reading, deliveries } = part.measured;
        state.oldest_seconds = state.oldest_seconds.max(reading.oldest.as_secs_f64());
        state.held |= part.held;
        let history = histories.get(part.source.consumer);
        // Messages that are held back keep the scope active, so that a worker is there when they are released.
        state.active |= history.is_some_and(|history| history.is_active(now));
        if part.held {
            state.pending += reading.ack_pending as f64 * deliveries;
        } else {
            state.pending += reading.outstanding() as f64 * deliveries;
            state.arrivals += history.map_or(0.0, |history| history.arrivals_per_second(now)) * deliveries;
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use herald_mesh::{Topology, TopologyConfig};

    use super::*;

    const EMPTY: Reading = Reading {
        pending: 0,
        ack_pending: 0,
        delivered: 0,
        delivered_ago: None,
        oldest: Duration::ZERO,
        paused: false,
    };

    type Readings = BTreeMap<&'static str, Result<Measured, Failure>>;

    fn monitor() -> Monitor {
        Monitor::new(Limits {
            keep_active: Duration::from_secs(30),
            rates: Role::ALL.map(|role| (role, 1_000.0)).into(),
            rate_factor_max: 4.0,
            in_flight_max: [(consumers::timeline(Lane::High), 10)].into(),
            gate: Gate::default(),
        })
    }

    /// Readings of empty consumers with 100 deliveries a message, but for some.
    fn readings(changed: &[(&'static str, Reading)]) -> Readings {
        let all = Scope::all().into_iter().flat_map(Scope::sources);
        let mut readings: Readings = all
            .map(|source| {
                let measured = Measured {
                    reading: EMPTY,
                    deliveries: 100.0,
                };
                (source.consumer, Ok(measured))
            })
            .collect();
        for (consumer, reading) in changed {
            let measured = Measured {
                reading: *reading,
                deliveries: 100.0,
            };
            readings.insert(consumer, Ok(measured));
        }
        readings
    }

    fn scope(role: Role, lane: Option<Lane>) -> Scope {
        Scope { role, lane }
    }

    fn pending(count: u64) -> Reading {
        Reading {
            pending: count,
            ..EMPTY
        }
    }

    #[test]
    fn a_lane_that_fan_out_holds_back_is_no_lag() {
        let mut monitor = monitor();
        let fanout = scope(Role::Fanout, Some(Lane::Low));
        let posts = Reading {
            pending: 5_000,
            ack_pending: 7,
            ..EMPTY
        };
        let mut seen = Vec::new();
        for (second, chunks) in [0, 4_095, 4_096, 2_049, 2_048].into_iter().enumerate() {
            let read = readings(&[
                (consumers::fanout(Lane::Low), posts),
                (consumers::push(Lane::Low), pending(chunks)),
            ]);
            let snapshot = monitor.update(Duration::from_secs(second as u64), &read);
            let state = snapshot[&fanout].clone().unwrap();
            assert!(state.active);
            assert!(
                !snapshot[&scope(Role::Fanout, Some(Lane::High))]
                    .clone()
                    .unwrap()
                    .held
            );
            seen.push((state.held, state.pending));
        }
        let (open, held) = ((false, 500_700.0), (true, 700.0));
        assert_eq!(seen, [open, open, held, held, open]);
    }

    #[test]
    fn an_unreadable_consumer_fails_its_scopes_alone() {
        let mut monitor = monitor();
        let mut read = readings(&[]);
        let missing = Failure::Missing {
            stream: "PUSH".into(),
            consumer: "push-low".into(),
        };
        read.insert(consumers::push(Lane::Low), Err(missing.clone()));
        let snapshot = monitor.update(Duration::ZERO, &read);
        for (scope, state) in &snapshot {
            let fails = scope.role == Role::Push && scope.lane.is_none_or(|lane| lane == Lane::Low);
            assert_eq!(state.as_ref().err(), fails.then_some(&missing), "{scope}");
        }
        read.remove(consumers::ARCHIVE);
        let snapshot = monitor.update(Duration::ZERO, &read);
        assert!(snapshot[&scope(Role::Archive, None)].is_err());
    }

    #[test]
    fn all_lanes_have_the_work_of_each() {
        let mut monitor = monitor();
        let read = readings(&[
            (consumers::timeline(Lane::High), pending(1)),
            (consumers::timeline(Lane::Low), pending(10)),
            (
                consumers::redrive(consumers::ConsumerKind::Timeline),
                pending(100),
            ),
        ]);
        let snapshot = monitor.update(Duration::ZERO, &read);
        let of = |lane| {
            let pending = snapshot[&scope(Role::Timeline, lane)].clone().unwrap().pending;
            pending.round() as i64
        };
        assert_eq!(
            [
                of(Some(Lane::High)),
                of(Some(Lane::Normal)),
                of(Some(Lane::Low)),
                of(None)
            ],
            [100, 10_000, 1_000, 11_100]
        );
    }

    #[test]
    fn a_backlog_measures_the_rate_of_one_process() {
        let mut monitor = monitor();
        let timeline = scope(Role::Timeline, Some(Lane::High));
        let mut rate = 0.0;
        for second in 0..200 {
            // Two processes have ten messages each in their hands, and settle 40 a second: 2,000 deliveries each.
            let reading = Reading {
                pending: 100_000 - 40 * second,
                ack_pending: 20,
                delivered: 20 + 40 * second,
                ..EMPTY
            };
            let read = readings(&[(consumers::timeline(Lane::High), reading)]);
            let snapshot = monitor.update(Duration::from_secs(second), &read);
            rate = snapshot[&timeline].clone().unwrap().process_rate;
        }
        assert!((rate - 2_000.0).abs() < 10.0, "{rate}");
    }

    #[test]
    fn a_paused_consumer_needs_no_more_workers() {
        let mut monitor = monitor();
        let paused = Reading {
            paused: true,
            ..pending(10)
        };
        let snapshot = monitor.update(Duration::ZERO, &readings(&[(consumers::ARCHIVE, paused)]));
        let state = snapshot[&scope(Role::Archive, None)].clone().unwrap();
        assert!(state.active && state.held && state.pending.abs() < f64::EPSILON);
    }

    #[test]
    fn the_default_topology_has_all_consumers() {
        let topology = Topology::new(&TopologyConfig::default()).unwrap();
        for consumer in readings(&[]).keys() {
            assert!(topology.consumer(consumer).is_some(), "{consumer}");
        }
    }
}
