//! The fanout service expands each post into chunks of recipients.
//!
//! For each message, a post or a slice (the remaining followers of a post), [`handler`]
//! 1. reads the followers: for a post at the newest follow version, for a slice at the version of its post,
//! 2. splits them into chunks ([`domain`]) and writes this plan to the ledger, which pins the version,
//! 3. publishes the chunks of the plan that the ledger has, once it is durable,
//! 4. publishes the next slice if followers are left.
//!
//! [`adapters`] pause a lane while too many chunks are pending in TIMELINE or PUSH, so that a backlog consists of posts
//! and not of chunks.
//!
//! *Invariant:* the same message always makes the same chunks, because the ledger keeps the plan of its first attempt. A
//! retry neither duplicates nor loses a recipient, whoever followed or unfollowed in the meantime.

mod adapters;
mod config;
mod domain;
mod error;
mod handler;
mod metrics;

use std::sync::Arc;

use futures::future::BoxFuture;
use herald_mesh::{ConsumeOptions, Mesh, Topology, Workers, consumers};
use herald_model::Lane;
use herald_runtime::wait::Waiting;
use herald_store::{Ledger, Users};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub use config::Config;
pub use error::Error;
pub use metrics::Metrics;

use crate::{
    adapters::{Followers, watch_gate},
    handler::Fanout,
};

/// Dependencies of the service.
pub struct Deps {
    /// Source of posts and slices, target of chunks and slices.
    pub mesh: Mesh,
    /// Configuration of the consumers.
    pub topology: Arc<Topology>,
    /// The lanes whose messages are handled. Redriven messages of all lanes are handled in any case.
    pub lanes: Vec<Lane>,
    /// User ids and their keys.
    pub users: Arc<dyn Users>,
    /// Stores the plans.
    pub ledger: Arc<dyn Ledger>,
    /// Connection to the graph service.
    pub graph: Channel,
    /// Metrics of the service.
    pub metrics: Metrics,
}

/// Runs until `shutdown`, then finishes the messages in flight.
pub fn run(config: Config, deps: Deps, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // A boxed future is compiled once in this crate; an `async fn` would be compiled in every crate that calls it.
    Box::pin(serve(config, deps, shutdown))
}

async fn serve(config: Config, deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate().map_err(Error::Config)?;
    let Deps {
        mesh,
        topology,
        lanes,
        users,
        ledger,
        graph,
        metrics,
    } = deps;
    let mut workers = Workers::new(mesh.clone(), topology, &shutdown);
    let fanout = Arc::new(Fanout {
        mesh: mesh.clone(),
        users,
        ledger,
        followers: Followers::new(graph),
        waiting: Waiting::new("fan-out of posts", metrics.waiting.clone()),
        metrics: metrics.clone(),
        config: config.clone(),
        stop: workers.stop(),
    });
    for lane in lanes {
        let shown = metrics.paused(lane);
        let paused = watch_gate(mesh.clone(), lane, config.gate, shown, workers.stop());
        let options = ConsumeOptions {
            in_flight_max: config.posts_in_flight_max.of(lane),
            batch_max: config.posts_in_flight_max.of(lane),
            paused: Some(paused),
        };
        workers.spawn(consumers::fanout(lane), fanout.clone(), options.clone())?;
        workers.spawn(consumers::slice(lane), fanout.clone(), options)?;
    }
    for kind in [consumers::ConsumerKind::Fanout, consumers::ConsumerKind::Slice] {
        let options = ConsumeOptions {
            in_flight_max: config.redrive_in_flight_max,
            batch_max: config.redrive_in_flight_max,
            paused: None,
        };
        workers.spawn(consumers::redrive(kind), fanout.clone(), options)?;
    }
    Ok(workers.join().await?)
}
