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
mod lanes;
mod last;
mod meta;
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
pub use lanes::PerLane;
pub use last::SequenceRange;
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
pub use verify::{Difference, FieldDifference};
pub use workers::Workers;

use connection::Connection;

/// A client of the mesh. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Mesh {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    /// Publishes, and reads for callers.
    publishing: Connection,
    /// Pulls, settles, subscribes, and manages streams and consumers.
    consuming: Connection,
}

impl Mesh {
    /// Opens both connections to the server. They reconnect automatically.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an invalid configuration, [`ErrorKind::Unavailable`] when no server answers.
    pub async fn connect(config: &Config) -> Result<Self> {
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
            }),
        })
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
