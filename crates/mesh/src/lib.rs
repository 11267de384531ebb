//! The mesh: the streams and consumers of Herald on NATS JetStream, and the only way in and out of them.
//!
//! - [`Subject`]: what a message is and where it goes.
//! - [`Topology`]: the streams and consumers as data, made from a [`TopologyConfig`]; [`Mesh::ensure`] brings a server to
//!   it.
//! - [`Mesh::publish`]: waits for the acknowledgement, with a bounded number of them in flight.
//! - [`Mesh::consume`]: the one loop that all workers run; their own part is a [`Handler`]. [`Workers`] are
//!   several of it.
//! - [`Requeuer`]: the handler of the stream LATER, where messages spend long waits.
//! - [`Mesh::publish_dead_letter`], [`Mesh::redrive`]: what was given up, and its second way.
//! - [`Mesh::lag`], [`Mesh::message`], [`Mesh::scan`] and others read the state.
//!
//! *Invariant:* publishing and consuming have a connection each. Thousands of acknowledgements in flight would starve
//! the deliveries on a shared one.
//!
//! *Invariant:* that a stream has no message of some sequence is said by its leader. A replica that is behind would say so
//! of a message that was acknowledged to its publisher a moment ago.
//!
//! *Invariant:* a message is settled once an attempt, by the loop, after the handler has returned. Handlers commit and
//! return; they have no way to acknowledge early.

mod config;
mod connection;
mod consume;
mod delay_queue;
mod ensure;
mod error;
mod headers;
mod history;
mod lanes;
mod last;
mod meta;
mod publish;
mod pull;
mod read;
mod redrive;
mod retry;
mod subject;
mod topology;
mod trace;
mod work;
mod workers;

use std::sync::Arc;

pub use config::Config;
pub use consume::{ConsumeOptions, Delivery, Disposition, Handler};
pub use delay_queue::Requeuer;
pub use error::{Error, ErrorKind, Result};
pub use headers::OriginalMessage;
pub use lanes::PerLane;
pub use publish::Published;
pub use read::{ConsumerLag, RawMessage, StreamLag};
pub use redrive::{Redrive, Redriven};
pub use retry::RetryDelay;
pub use subject::Subject;
pub use topology::{
    ConsumerPolicies, ConsumerPolicy, ConsumerSpec, StreamLimits, StreamSpec, Topology, TopologyConfig,
    Waits, consumers, streams,
};
pub use workers::Workers;

use connection::Connection;

/// A connection to the mesh. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Mesh {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    /// Publishes, and reads what callers wait for.
    publishing: Connection,
    /// Pulls, settles, subscribes, and manages.
    consuming: Connection,
}

impl Mesh {
    /// Connects to the server, twice. Later interruptions mend themselves.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a bad configuration, [`ErrorKind::Unavailable`] when no server answers.
    pub async fn connect(config: &Config) -> Result<Self> {
        config.validate()?;
        let (publishing, consuming) = futures::try_join!(
            Connection::open(config, "publish"),
            Connection::open(config, "consume")
        )?;
        Ok(Self {
            inner: Arc::new(Inner {
                config: config.clone(),
                publishing,
                consuming,
            }),
        })
    }

    /// Whether both connections are up at this moment.
    pub fn is_connected(&self) -> bool {
        self.inner.publishing.is_up() && self.inner.consuming.is_up()
    }

    /// Waits until the server has taken in all that was sent so far, acknowledgements and live messages included.
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
