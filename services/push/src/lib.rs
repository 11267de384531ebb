//! The push service sends posts to devices.
//!
//! For each chunk, [`handler`]
//! 1. reads the progress of earlier attempts from the ledger,
//! 2. decides what to do with each recipient that is due ([`attempt`], [`domain`]),
//! 3. claims the chunk in the ledger, sends the pushes ([`adapters`]), and records progress in the ledger periodically
//!    and at the end,
//! 4. publishes an event for analytics,
//! 5. acknowledges or terminates the message. If recipients are pending, a copy of it continues with them.
//!
//! *Invariant:* a device waits for its own retry only. Recipients whose devices failed leave the message and continue
//! in a copy; the ledger has the copy's generation. Whatever message of a chunk comes handles the devices that are due,
//! and makes sure that the copy of the newest generation exists. So a crash between record, copy and acknowledgement
//! loses and repeats nothing.
//!
//! *Invariant:* nothing is sent whose outcome can't be recorded, and no two workers send the same chunk at once: the
//! claim is a write to the same row, and lasts for a lease ([`claim`]).
//!
//! *Invariant:* a device that accepted a push is recorded before its message is acknowledged, and never gets the push
//! of that post again. Exception: after a crash, pushes accepted since the last record and those in flight can be sent
//! twice. `settle_sends_max` limits their number, and the repeats have the same `webhook-id` and `Topic`.
//!
//! *Invariant:* an event has all counts of a chunk in the ledger, and their revision. So a redelivery can publish the
//! event again, and analytics counts it once.
//!
//! [`herald_push_endpoint`] decides which URLs are allowed.

mod adapters;
mod attempt;
mod check;
mod chunk_lock;
mod claim;
mod config;
mod device_health;
mod domain;
mod error;
mod handler;
mod ledger;
mod metrics;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use herald_mesh::{ConsumeOptions, Mesh, Requeuer, Topology, Workers, consumers};
use herald_model::Lane;
use herald_posts::PostReader;
use herald_runtime::wait::Waiting;
use herald_store::{Devices, Ledger, Posts, Preferences, Users};
use tokio::{sync::Semaphore, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

pub use adapters::{Vapid, public_key};
pub use config::Config;
pub use error::Error;
pub use metrics::Metrics;

use crate::{adapters::Dispatcher, chunk_lock::ChunkLocks, handler::PushHandler};

/// Interval at which the circuit breakers are shown in the metrics.
const BREAKERS_INTERVAL: Duration = Duration::from_secs(1);

/// Dependencies of the service.
pub struct Deps {
    /// The mesh: chunks are read from it, events are published to it.
    pub mesh: Mesh,
    /// Configuration of the consumers.
    pub topology: Arc<Topology>,
    /// The lanes whose messages are handled. Redriven messages of all lanes are handled in any case.
    pub lanes: Vec<Lane>,
    /// User ids.
    pub users: Arc<dyn Users>,
    /// Devices of the recipients.
    pub devices: Arc<dyn Devices>,
    /// Preferences of the recipients.
    pub preferences: Arc<dyn Preferences>,
    /// The archive of posts.
    pub posts: Arc<dyn Posts>,
    /// Records the outcomes.
    pub ledger: Arc<dyn Ledger>,
    /// VAPID key pair; the gateway gives its public key to browsers.
    pub vapid: Vapid,
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
        devices,
        preferences,
        posts,
        ledger,
        vapid,
        metrics,
    } = deps;
    let handler = Arc::new(PushHandler {
        dispatcher: Arc::new(Dispatcher::new(&config, vapid, metrics.clone())?),
        posts: PostReader::new(users.clone(), posts, mesh.clone()),
        mesh: mesh.clone(),
        users,
        devices,
        preferences,
        ledger,
        chunk_locks: ChunkLocks::default(),
        slow_chunks: Lane::ALL.map(|_| Semaphore::new(config.slow_chunks_max())),
        waiting: Waiting::new("pushes", metrics.waiting.clone()),
        metrics,
        config: config.clone(),
        stop: shutdown.child_token(),
    });
    tokio::spawn(
        shutdown
            .clone()
            .run_until_cancelled_owned(show_breakers(handler.dispatcher.clone())),
    );
    let requeuer = Arc::new(Requeuer::new(mesh.clone()));
    let mut workers = Workers::new(mesh, topology, &shutdown);
    for lane in lanes {
        let options = ConsumeOptions {
            in_flight_max: config.chunks_in_flight_max,
            batch_max: config.chunks_in_flight_max,
            paused: None,
        };
        workers.spawn(consumers::push(lane), handler.clone(), options)?;
    }
    // Publishes chunks with waiting recipients to PUSH again when they are due.
    workers.spawn(consumers::LATER, requeuer, ConsumeOptions::default())?;
    let options = ConsumeOptions {
        in_flight_max: config.redrive_chunks_in_flight_max,
        batch_max: config.redrive_chunks_in_flight_max,
        paused: None,
    };
    workers.spawn(
        consumers::redrive(consumers::ConsumerKind::Push),
        handler,
        options,
    )?;
    Ok(workers.join().await?)
}

/// Shows the circuit breakers in the metrics again and again: an opening ends by the clock alone.
async fn show_breakers(dispatcher: Arc<Dispatcher>) {
    let mut ticks = tokio::time::interval(BREAKERS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        dispatcher.show_breakers();
    }
}
