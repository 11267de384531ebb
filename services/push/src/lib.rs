//! The push service: brings posts to devices.
//!
//! The way of a chunk ([`handler`]): what earlier attempts recorded comes from the ledger; each recipient who is not
//! settled is decided upon ([`attempt`], [`domain`]); the devices get their push ([`adapters`]); what came of it goes to the ledger, now
//! and then while it runs and at the end; an event tells analytics; and only then is the message acknowledged.
//!
//! *Invariant:* a device that accepted a push is recorded before its message is acknowledged, and is never sent to again
//! for that post. Only what was accepted after the last record can come twice, after a crash: `settle_sends_max` and
//! those in flight bound it, and the repeats carry the same `webhook-id` and `Topic`.
//!
//! *Invariant:* an event tells all that the ledger has of a chunk, and its revision; so whoever gets the message next can
//! make the event again, and analytics counts it once.
//!
//! Which URLs a push may be sent to is decided by [`herald_push_endpoint`].

mod adapters;
mod attempt;
mod chunk_lock;
mod config;
mod domain;
mod error;
mod handler;
mod metrics;

use std::sync::Arc;

use futures::future::BoxFuture;
use herald_mesh::{ConsumeOptions, Mesh, Requeuer, Topology, Workers, consumers};
use herald_model::Lane;
use herald_posts::PostReader;
use herald_store::{Devices, Ledger, Posts, Preferences, Users};
use tokio_util::sync::CancellationToken;

pub use adapters::Vapid;
pub use config::Config;
pub use error::Error;
pub use metrics::Metrics;

use crate::{adapters::Dispatcher, chunk_lock::ChunkLocks, handler::PushHandler};

/// What the service needs from outside.
pub struct Deps {
    /// Where chunks come from, and events go to.
    pub mesh: Mesh,
    /// The consumers to work on.
    pub topology: Arc<Topology>,
    /// User ids.
    pub users: Arc<dyn Users>,
    /// Where to push to.
    pub devices: Arc<dyn Devices>,
    /// Who wants to hear what.
    pub preferences: Arc<dyn Preferences>,
    /// What to tell.
    pub posts: Arc<dyn Posts>,
    /// Where deliveries are recorded.
    pub ledger: Arc<dyn Ledger>,
    /// Who sends; the gateway tells browsers its public key.
    pub vapid: Vapid,
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
        users,
        devices,
        preferences,
        posts,
        ledger,
        vapid,
        metrics,
    } = deps;
    let chunks = Arc::new(PushHandler {
        dispatcher: Arc::new(Dispatcher::new(&config, vapid, metrics.clone())?),
        posts: PostReader::new(posts, mesh.clone()),
        mesh: mesh.clone(),
        users,
        devices,
        preferences,
        ledger,
        chunk_lock: ChunkLocks::default(),
        metrics,
        config: config.clone(),
    });
    let returns = Arc::new(Requeuer::new(mesh.clone()));
    let mut workers = Workers::new(mesh, topology, &shutdown);
    for lane in Lane::ALL {
        let options = ConsumeOptions {
            in_flight_max: config.chunks_in_flight_max,
            batch_max: config.chunks_in_flight_max,
            paused: None,
        };
        workers.spawn(consumers::push(lane), chunks.clone(), options)?;
    }
    // A chunk whose provider asked for a long wait comes back from there.
    workers.spawn(consumers::LATER, returns, ConsumeOptions::default())?;
    let options = ConsumeOptions {
        in_flight_max: config.redrive_chunks_in_flight_max,
        batch_max: config.redrive_chunks_in_flight_max,
        paused: None,
    };
    workers.spawn(consumers::redrive(consumers::ConsumerKind::Push), chunks, options)?;
    Ok(workers.join().await?)
}
