//! The fanout service: one post in, its chunks out.
//!
//! The way of a post: [`handler`] takes it (or the rest of it, a slice) from its lane, reads the followers that the post
//! has pinned, plans the slice's chunks ([`domain`]), writes the plan to the ledger, publishes the chunks, waits until the plan
//! is durable, and, when followers are left, publishes the next slice. [`adapters`] hold a lane back while the streams below
//! it are deep, so that a backlog waits as posts and not as chunks.
//!
//! *Invariant:* the same message always makes the same chunks: followers are read as of the version that the post has
//! pinned, so a retry repeats nobody and loses nobody.

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
use herald_store::Ledger;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub use config::Config;
pub use error::Error;
pub use metrics::Metrics;

use crate::{
    adapters::{Followers, watch_gate},
    handler::Fanout,
};

/// What the service needs from outside.
pub struct Deps {
    /// Where posts come from and chunks go to.
    pub mesh: Mesh,
    /// The consumers to work on.
    pub topology: Arc<Topology>,
    /// Where plans are written.
    pub ledger: Arc<dyn Ledger>,
    /// The graph service.
    pub graph: Channel,
    /// Counters.
    pub metrics: Metrics,
}

/// Works until `shutdown`, then finishes the messages under way.
pub fn run(config: Config, deps: Deps, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // A boxed future is compiled here; an `async fn` would be compiled again in every crate that calls it.
    Box::pin(serve(config, deps, shutdown))
}

async fn serve(config: Config, deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate().map_err(Error::Config)?;
    let Deps {
        mesh,
        topology,
        ledger,
        graph,
        metrics,
    } = deps;
    let fanout = Arc::new(Fanout {
        mesh: mesh.clone(),
        ledger,
        followers: Followers::new(graph),
        metrics,
        config: config.clone(),
    });
    let mut workers = Workers::new(mesh.clone(), topology, &shutdown);
    for lane in Lane::ALL {
        let paused = watch_gate(mesh.clone(), lane, config.gate, workers.stop());
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
