//! Reads the facts. No reading waits for long: a part that doesn't answer is a fact too.

mod ports;

use std::time::Duration;

use herald_mesh::{ConsumerState, Inspection, Mesh, Topology, consumers, streams};
use herald_model::{Lane, time::Timestamp};
use herald_runtime::telemetry::error_chain;
use herald_store::cluster::timeline_clocks;
use tokio::time::timeout;

use super::observed::{Clock, Late, Observed, Unchecked};
use crate::{
    server::{About, Away, Config, Examining, NotCompared, Part, Roles, no_answer},
    sources::{Asker, Source},
};

/// Limit of a reading of all streams and consumers. One request of it has a limit of its own, which is lower.
const MESH_LIMIT: Duration = Duration::from_secs(15);
/// Limit of a reading of the clocks of Valkey.
const TIMELINES_LIMIT: Duration = Duration::from_secs(5);
/// Promise of a timeline, from the acceptance of the post.
const TIMELINE_PROMISE: Duration = Duration::from_secs(30);
/// Promise of a push, from the acceptance of the post.
const PUSH_PROMISE: Duration = Duration::from_secs(5);

/// Readings in which a consumer must have no reader: a worker asks again shortly after its last request ended.
const READINGS: u32 = 4;
/// Pause between two of them.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) const FROM_STORE: [&str; 4] = [
    "stream-lost-tail",
    "stream-replaced",
    "post-id-reused",
    "store-older",
];
const FROM_PROCESSES: [&str; 3] = ["chunks-differ", "topology-differs", "versions-differ"];
const FROM_BROKER: [&str; 16] = [
    "stream-missing",
    "stream-differs",
    "consumer-missing",
    "consumer-differs",
    "stream-without-leader",
    "replica-behind",
    "single-replica",
    "advisories-late",
    "retention-shorter-than-retries",
    "consumer-backoff",
    "dedupe-window-short",
    "ack-pending-small",
    "consumer-unread",
    "consumer-paused",
    "deliveries-late",
    "archive-behind",
];
const FROM_SERVERS: [&str; 3] = ["stream-frozen", "server-unhealthy", "fsync-interval"];

/// What to look at.
pub(crate) struct Target<'a> {
    pub(crate) config: &'a Config,
    pub(crate) examining: &'a Examining,
    /// The HTTP ports of the processes.
    pub(crate) processes: &'a [Source],
    /// How the process of the data directory is called, if `processes` is that one.
    pub(crate) own_process: Option<String>,
    /// The flags that name this mesh to other commands.
    pub(crate) flags: &'a MeshFlags,
    /// The monitoring ports of the NATS servers.
    pub(crate) monitors: &'a [Source],
}

/// The flags that name the mesh of this command to other commands, each after a space.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct MeshFlags {
    /// For commands that use NATS alone.
    pub(crate) nats: String,
    /// For commands that use the store too.
    pub(crate) whole: String,
}

/// Reads all facts.
pub(crate) async fn observe(target: &Target<'_>) -> Observed {
    let Target {
        config, examining, ..
    } = target;
    let own = About::new(config, &Roles::whole());
    let mut observed = Observed {
        topology: (*examining.topology).clone(),
        topology_config: own.topology,
        in_flight_max: own.in_flight_max,
        slots_max: own.slots_max,
        gate: config.fanout.gate,
        flags: target.flags.clone(),
        away: Vec::new(),
        unread: Vec::new(),
        streams: Vec::new(),
        consumers: Vec::new(),
        unreadable: Vec::new(),
        differences: Vec::new(),
        late: Vec::new(),
        archive_age: Duration::ZERO,
        store_problems: Vec::new(),
        servers: Vec::new(),
        processes: Vec::new(),
        clocks: vec![Clock {
            name: "this machine".into(),
            ahead_us: 0,
            error_us: 0,
        }],
        unchecked: Vec::new(),
    };
    match &examining.mesh {
        Ok(mesh) => observed.read_mesh(mesh).await,
        Err(away) => {
            observed.away.push(away.clone());
            observed.skip(&FROM_BROKER, "NATS can't be reached");
        }
    }
    observed.read_store(target).await;
    observed.read_timelines(config).await;
    let mut asker = Asker::default();
    observed.read_servers(&mut asker, target).await;
    observed.read_processes(&mut asker, target).await;
    observed
}

/// The consumers without a reader in any of some readings.
async fn unread(mesh: &Mesh, topology: &Topology, first: &[ConsumerState]) -> Vec<String> {
    let mut unread: Vec<ConsumerState> = first.to_vec();
    unread.retain(|one| one.waiting_pull_count == 0);
    for _ in 1..READINGS {
        if unread.is_empty() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        let again = inspect(mesh, topology).await.unwrap_or_default();
        unread.retain(|before| {
            let now = again.consumers.iter().find(|now| now.name == before.name);
            now.is_some_and(|now| {
                now.waiting_pull_count == 0
                    && now.delivered_count == before.delivered_count
                    && now.ack_floor == before.ack_floor
            })
        });
    }
    unread.into_iter().map(|one| one.name).collect()
}

/// The streams and consumers; an error is the reason why no server tells them.
async fn inspect(mesh: &Mesh, topology: &Topology) -> Result<Inspection, String> {
    let inspected = timeout(MESH_LIMIT, mesh.inspect(topology)).await;
    inspected.map_err(|_| format!("read the streams and consumers: {}", no_answer(MESH_LIMIT)))
}

/// What the server answers within the limit.
async fn within<T>(reading: impl Future<Output = herald_mesh::Result<T>>) -> Result<T, String> {
    match timeout(MESH_LIMIT, reading).await {
        Ok(read) => read.map_err(|error| error_chain(&error)),
        Err(_) => Err(no_answer(MESH_LIMIT)),
    }
}

impl Observed {
    fn skip(&mut self, ids: &[&'static str], reason: impl Into<String>) {
        self.unchecked.push(Unchecked {
            ids: ids.to_vec(),
            reason: reason.into(),
        });
    }

    async fn read_mesh(&mut self, mesh: &Mesh) {
        let topology = self.topology.clone();
        let inspection = match inspect(mesh, &topology).await {
            Ok(inspection) => inspection,
            Err(reason) => {
                self.unreadable.push(reason);
                self.skip(&FROM_BROKER, "NATS doesn't answer");
                return;
            }
        };
        self.unreadable = unreadable(&inspection);
        self.unread = unread(mesh, &topology, &inspection.consumers).await;
        self.streams = inspection.streams;
        self.consumers = inspection.consumers;
        match within(mesh.verify(&topology)).await {
            Ok(differences) => self.differences = differences,
            Err(reason) => self.skip(&FROM_BROKER[..4], reason),
        }
        self.read_ages(mesh).await;
        self.read_clock(mesh).await;
    }

    /// How old the oldest messages are.
    async fn read_ages(&mut self, mesh: &Mesh) {
        if let Some(archive) = self.topology.consumer(consumers::ARCHIVE) {
            match within(mesh.lag_of(archive)).await {
                Ok(lag) => self.archive_age = lag.map_or(Duration::ZERO, |lag| lag.oldest_age),
                Err(reason) => self.skip(&["archive-behind"], reason),
            }
        }
        for lane in Lane::ALL {
            for (consumer, promise) in [
                (consumers::timeline(lane), TIMELINE_PROMISE),
                (consumers::push(lane), PUSH_PROMISE),
            ] {
                let Some(spec) = self.topology.consumer(consumer) else {
                    continue;
                };
                match within(mesh.lag_of(spec)).await {
                    Ok(Some(lag)) if lag.outstanding_count() > 0 && lag.oldest_age > promise => {
                        self.late.push(Late {
                            consumer: lag.consumer.clone(),
                            message_count: lag.outstanding_count(),
                            age: lag.oldest_age,
                            promise,
                        });
                    }
                    Ok(_) => {}
                    Err(reason) => self.skip(&["deliveries-late"], format!("consumer {consumer}: {reason}")),
                }
            }
        }
    }

    async fn read_clock(&mut self, mesh: &Mesh) {
        match within(mesh.clock_of(streams::POSTS)).await {
            Ok(Some(read)) => self.clocks.push(clock(
                "the NATS server that leads POSTS",
                [read.sent_at, read.time, read.received_at],
            )),
            Ok(None) => self.skip(
                &["clocks-apart"],
                "the clock of NATS: stream POSTS gave no answer with a time",
            ),
            Err(reason) => self.skip(&["clocks-apart"], format!("the clock of NATS: {reason}")),
        }
    }

    async fn read_store(&mut self, target: &Target<'_>) {
        match target.examining.check_store(target.config).await {
            Ok(found) => {
                self.store_problems = found.problems;
                self.clocks
                    .extend(found.clock.map(|times| clock("PostgreSQL", times)));
            }
            Err(NotCompared::Away(away)) => {
                self.skip(&FROM_STORE, format!("{}: {}", away.name, away.reason));
                self.away.push(away);
            }
            Err(NotCompared::Other(reason)) => self.skip(&FROM_STORE, reason),
        }
    }

    async fn read_timelines(&mut self, config: &Config) {
        if !config.store.is_cluster() {
            return;
        }
        if config.timelines.url.is_empty() {
            self.skip(&["clocks-apart"], "the clock of Valkey: timelines.url is not set");
            return;
        }
        let away = |reason, is_silent| Away {
            part: Part::Timelines,
            name: config.timelines.url.redacted(),
            reason,
            is_silent,
        };
        let away = match timeout(TIMELINES_LIMIT, timeline_clocks(&config.timelines)).await {
            Ok(Ok(clocks)) => {
                self.clocks.extend(clocks.into_iter().map(|read| {
                    let name = format!("Valkey (the primary of slot {})", read.slot);
                    clock(&name, [read.read[0], read.time, read.read[1]])
                }));
                return;
            }
            Ok(Err(error)) => away(error_chain(&error), false),
            Err(_) => away(no_answer(TIMELINES_LIMIT), true),
        };
        self.skip(&["clocks-apart"], format!("the clock of Valkey: {}", away.reason));
        self.away.push(away);
    }
}

/// A clock that was read between two readings of the own one.
fn clock(name: &str, [sent_at, time, received_at]: [Timestamp; 3]) -> Clock {
    let error_us = (received_at.0 - sent_at.0).max(0) / 2;
    Clock {
        name: name.into(),
        ahead_us: time.0 - (sent_at.0 + error_us),
        error_us,
    }
}

/// What can't be read, a line a stream: without a majority of servers, none of its consumers can.
fn unreadable(inspection: &Inspection) -> Vec<String> {
    let streams = inspection.unreadable.iter().map(|error| error_chain(error));
    let consumers = inspection.unreadable_consumers.iter().map(|one| {
        let error = error_chain(&one.error);
        match one.consumers.as_slice() {
            [_] => error,
            all => format!(
                "{} consumers of stream {} can't be read ({}), the first one: {error}",
                all.len(),
                one.stream,
                all.join(", ")
            ),
        }
    });
    streams.chain(consumers).collect()
}
