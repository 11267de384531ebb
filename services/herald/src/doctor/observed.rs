//! The facts that the checks look at.

use std::{collections::BTreeMap, time::Duration};

use herald_mesh::{ConsumerState, Difference, Gate, StreamState, Topology};
use herald_proto::mesh_v1::StreamProblem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::observe::MeshFlags;
use crate::server::{About, Away};

/// What was read of a mesh.
#[derive(Debug)]
pub(crate) struct Observed {
    /// The streams and consumers of the configuration.
    pub(crate) topology: Topology,
    /// The section `topology` of the configuration.
    pub(crate) topology_config: Value,
    /// Messages that one process with this configuration has in flight at most, by consumer.
    pub(crate) in_flight_max: BTreeMap<String, u64>,
    /// Messages that one process with this configuration handles at once, by consumer.
    pub(crate) slots_max: BTreeMap<String, u64>,
    /// When fan-out pauses a lane.
    pub(crate) gate: Gate,
    /// The flags that name this mesh to other commands.
    pub(crate) flags: MeshFlags,
    /// Parts that can't be reached.
    pub(crate) away: Vec<Away>,
    /// The streams that exist.
    pub(crate) streams: Vec<StreamState>,
    /// The consumers that exist.
    pub(crate) consumers: Vec<ConsumerState>,
    /// Why others can't be read.
    pub(crate) unreadable: Vec<String>,
    /// Consumers that no worker pulled from, and that made no progress, in any reading.
    pub(crate) unread: Vec<String>,
    /// Where the server differs from the configuration.
    pub(crate) differences: Vec<Difference>,
    /// Consumers whose oldest message is older than the promise.
    pub(crate) late: Vec<Late>,
    /// The age of the oldest post that the archive has not acknowledged.
    pub(crate) archive_age: Duration,
    /// What is wrong between the streams and the store.
    pub(crate) store_problems: Vec<StreamProblem>,
    /// The servers of NATS.
    pub(crate) servers: Vec<Server>,
    /// The processes of Herald.
    pub(crate) processes: Vec<Process>,
    /// The clocks of all of them, and of this machine.
    pub(crate) clocks: Vec<Clock>,
    /// What could not be read.
    pub(crate) unchecked: Vec<Unchecked>,
}

/// A server of NATS, by its monitoring API.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) name: String,
    /// Interval of its fsync; `None`: it syncs each message.
    pub(crate) sync_interval: Option<Duration>,
    /// What is wrong with its streams and consumers.
    pub(crate) errors: Vec<HealthError>,
}

/// What a server of NATS says is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HealthError {
    /// The stream; empty if the error is about the server.
    pub(crate) stream: String,
    pub(crate) text: String,
}

/// A process of Herald.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// Its URL.
    pub(crate) name: String,
    pub(crate) about: About,
    /// The checks of `/readyz` that fail.
    pub(crate) failing: Vec<ReadyCheck>,
}

/// A check of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ReadyCheck {
    pub(crate) name: String,
    pub(crate) ready: bool,
    pub(crate) reason: String,
    /// Whether the process is not ready while it fails.
    #[serde(default = "is_required")]
    pub(crate) required: bool,
}

fn is_required() -> bool {
    true
}

/// A consumer whose oldest message is older than the promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Late {
    pub(crate) consumer: String,
    /// Messages that are not acknowledged.
    pub(crate) message_count: u64,
    /// The age of the oldest of them.
    pub(crate) age: Duration,
    pub(crate) promise: Duration,
}

/// A clock, compared with that of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clock {
    pub(crate) name: String,
    /// How far it is ahead, microseconds.
    pub(crate) ahead_us: i64,
    /// How wrong the comparison can be, microseconds.
    pub(crate) error_us: i64,
}

/// A check that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Unchecked {
    /// The ids of the findings that it could have had.
    pub(crate) ids: Vec<&'static str>,
    pub(crate) reason: String,
}

#[cfg(test)]
impl Observed {
    /// A mesh with the default configuration: no message waits, and no process and no server is known.
    pub(crate) fn with_defaults() -> Self {
        use herald_model::time::Timestamp;

        use crate::server::{Config, Roles};

        let config = Config::default();
        let topology = Topology::new(&config.topology).unwrap();
        let own = About::new(&config, &Roles::whole());
        let consumers = topology.consumers.iter().map(|spec| ConsumerState {
            stream: spec.stream.clone(),
            name: spec.name.clone(),
            created_at: Timestamp(0),
            ack_wait: spec.ack_wait,
            backoff: Vec::new(),
            attempts_max: None,
            ack_pending_max: Some(spec.ack_pending_max.into()),
            pending_count: 0,
            ack_pending_count: 0,
            waiting_pull_count: 0,
            delivered_count: 0,
            ack_floor: 0,
            paused_for: Duration::ZERO,
        });
        Self {
            consumers: consumers.collect(),
            topology,
            topology_config: own.topology,
            in_flight_max: own.in_flight_max,
            slots_max: own.slots_max,
            gate: config.fanout.gate,
            flags: MeshFlags::default(),
            away: Vec::new(),
            late: Vec::new(),
            streams: Vec::new(),
            unreadable: Vec::new(),
            unread: Vec::new(),
            differences: Vec::new(),
            archive_age: Duration::ZERO,
            store_problems: Vec::new(),
            servers: Vec::new(),
            processes: Vec::new(),
            clocks: Vec::new(),
            unchecked: Vec::new(),
        }
    }
}
