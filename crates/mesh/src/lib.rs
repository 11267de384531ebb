//! The mesh: Herald's streams and consumers on NATS JetStream. Services access JetStream only through this crate.
//!
//! - [`Subject`]: the subject and type of a message.
//! - [`Topology`]: the specifications of the streams and consumers, built from a [`TopologyConfig`]; [`Mesh::ensure`]
//!   creates or updates them on a server, [`Mesh::verify`] compares them.
//! - [`NatsUser`]: the users of a server that restricts each role to what it does, and their [`Permissions`].
//! - [`Mesh::publish`]: publishes and waits for the acknowledgement, with a bounded number of messages in flight.
//! - [`Mesh::consume`]: the consumer loop of every worker; a worker implements [`Handler`]. [`Workers`] runs several
//!   consumers.
//! - [`Requeuer`]: the handler of LATER, the delay queue for long retry delays.
//! - [`Mesh::publish_dead_letter`], [`Mesh::redrive`]: dead letters and their redrive.
//! - [`Metrics`], [`BrokerMetrics`]: what the process handles and publishes, and what the broker has.
//! - [`Mesh::inspect`]: how the streams and consumers are set up on a server.
//! - [`Mesh::lag`], [`Mesh::message`], [`Mesh::scan`] and others read the state of streams and consumers.
//!
//! *Invariant:* publishing and consuming use separate connections. On a shared connection, thousands of publish
//! acknowledgements in flight would delay the deliveries.
//!
//! *Invariant:* only the leader of a stream may report that a sequence has no message. A lagging replica would report
//! this for a message that was just acknowledged to its publisher.
//!
//! *Invariant:* the consumer loop settles a message once per attempt, after the handler has returned. Handlers commit
//! and return; they can't acknowledge early.

mod auth;
mod begin_anew;
mod config;
mod connection;
mod consume;
mod delay_queue;
mod ensure;
mod error;
mod full;
mod gate;
mod headers;
mod history;
mod hops;
mod inspect;
mod lanes;
mod last;
mod meta;
mod metrics;
mod permissions;
mod publish;
mod pull;
mod read;
mod redrive;
mod retry;
mod sample;
mod slot;
mod snapshot;
mod subject;
mod topology;
mod trace;
mod verify;
mod work;
mod workers;

use std::sync::Arc;

pub use auth::{Auth, Tls};
pub use config::{Config, TopologyMode};
pub use consume::{ConsumeOptions, Delivery, Disposition, Handler, Wait};
pub use delay_queue::Requeuer;
pub use error::{Error, ErrorKind, Result};
pub use gate::Gate;
pub use headers::OriginalMessage;
pub use inspect::{ClockReading, Cluster, ConsumerState, Inspection, StreamState, UnreadableConsumers};
pub use lanes::PerLane;
pub use last::SequenceRange;
pub use metrics::{BrokerMetrics, Metrics};
pub use permissions::Permissions;
pub use publish::Published;
pub use read::{ConsumerLag, RawMessage, StreamLag};
pub use redrive::{Redrive, Redriven};
pub use retry::RetryDelay;
pub use snapshot::SnapshotHeader;
pub use subject::Subject;
pub use topology::{
    ConsumerPolicies, ConsumerPolicy, ConsumerSpec, DelayLimits, NatsUser, StreamLimits, StreamSpec,
    Topology, TopologyConfig, consumers, streams,
};
pub use trace::{MessageLink, batch_span};
pub use verify::{Difference, FieldDifference};
pub use workers::Workers;

use connection::Connection;

/// A client of the mesh. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Mesh {
    inner: Arc<Inner>,
    /// The role in the spans.
    role: &'static str,
    /// Whether the server reports its hops of messages whose traces are recorded.
    broker_hops: bool,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    /// Publishes, and reads for callers.
    publishing: Connection,
    /// Pulls, settles, subscribes, and manages streams and consumers.
    consuming: Connection,
    metrics: Metrics,
}

impl Mesh {
    /// Opens both connections to the server. They reconnect automatically.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an invalid configuration, [`ErrorKind::Unavailable`] when no server answers.
    pub async fn connect(config: &Config) -> Result<Self> {
        Self::connect_with(config, Metrics::default()).await
    }

    /// Connects as [`Mesh::connect`] does, and counts what is handled and published.
    pub async fn connect_with(config: &Config, metrics: Metrics) -> Result<Self> {
        config.validate()?;
        let (publishing, consuming) = futures::try_join!(
            Box::pin(Connection::open(config, "publish")),
            Box::pin(Connection::open(config, "consume"))
        )?;
        Ok(Self {
            inner: Arc::new(Inner {
                config: config.clone(),
                publishing,
                consuming,
                metrics,
            }),
            role: "",
            broker_hops: false,
        })
    }

    /// The mesh with the role that its spans belong to, such as `push`. It shares the connections.
    #[must_use]
    pub fn for_role(&self, role: &'static str) -> Self {
        Self { role, ..self.clone() }
    }

    /// The mesh with or without the server's hops in traces; see [`Mesh::run_broker_hops`]. It shares the connections.
    #[must_use]
    pub fn with_broker_hops(&self, broker_hops: bool) -> Self {
        Self {
            broker_hops,
            ..self.clone()
        }
    }

    /// Expects the end of the connections, such as that of a server that is stopped: it is no longer worth a warning.
    pub fn expect_end(&self) {
        self.inner.publishing.expect_end();
        self.inner.consuming.expect_end();
    }

    /// Whether both connections are up.
    pub fn is_connected(&self) -> bool {
        self.inner.publishing.is_up() && self.inner.consuming.is_up()
    }

    /// Waits until the server has received everything sent so far, acknowledgements and live messages included.
    pub async fn flush(&self) -> Result<()> {
        futures::try_join!(
            self.inner.publishing.round_trip(),
            self.inner.consuming.round_trip()
        )?;
        Ok(())
    }

    fn publishing(&self) -> &Connection {
        &self.inner.publishing
    }

    fn consuming(&self) -> &Connection {
        &self.inner.consuming
    }
}
