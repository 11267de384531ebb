//! The timeline service writes posts to timelines.
//!
//! For each chunk, [`handler`]
//! 1. writes the post to the timelines, where it is readable at once,
//! 2. publishes the chunk to watchers,
//! 3. waits until the write is durable,
//! 4. records the outcome in the ledger,
//! 5. publishes an event for analytics,
//! 6. acknowledges the message.
//!
//! A backfill ([`backfill`]) delivers the newest posts of an author to new followers. The plan of a post does not
//! contain these deliveries, so a backfill has no event and no counts; the ledger only records it, before the first
//! write to a timeline. Recipients whose timelines are not written on purpose are recorded as suppressed. After a
//! permanent error a chunk is bisected ([`isolate`](herald_failure::isolate)): only the recipients that cause the error
//! don't get the post.

mod adapters;
mod backfill;
mod config;
mod domain;
mod error;
mod handler;
mod metrics;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use herald_mesh::{ConsumeOptions, Mesh, Requeuer, Topology, Workers, consumers};
use herald_model::Lane;
use herald_runtime::wait::Waiting;
use herald_store::{Ledger, Posts, Timelines};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use error::Error;
pub use metrics::Metrics;

use crate::{
    adapters::{Reporter, Watchers},
    backfill::Backfiller,
    handler::TimelineHandler,
};

/// Time that the publishers have to finish after the last handler.
const PUBLISHERS_DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Dependencies of the service.
pub struct Deps {
    /// Source of chunks, target of live chunks and events.
    pub mesh: Mesh,
    /// Configuration of the consumers.
    pub topology: Arc<Topology>,
    /// The lanes whose messages are handled. Redriven messages of all lanes are handled in any case.
    pub lanes: Vec<Lane>,
    /// The timelines that users read.
    pub timelines: Arc<dyn Timelines>,
    /// Records the outcomes.
    pub ledger: Arc<dyn Ledger>,
    /// The archive, for backfills.
    pub posts: Arc<dyn Posts>,
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
        timelines,
        ledger,
        posts,
        metrics,
    } = deps;
    let (watchers, watchers_task) = Watchers::new(mesh.clone());
    let (reporter, reporter_task) = Reporter::new(mesh.clone());
    let backfiller = Backfiller {
        mesh: mesh.clone(),
        watchers: watchers.clone(),
        posts,
        timelines: timelines.clone(),
        ledger: ledger.clone(),
        posts_max: config.backfill_posts_max,
    };
    let handler = Arc::new(TimelineHandler {
        timelines,
        ledger,
        watchers,
        reporter,
        backfiller,
        waiting: Waiting::new("timeline deliveries", metrics.waiting.clone()),
        metrics,
        isolate_attempts_min: config.isolate_attempts_min,
        stop: shutdown.child_token(),
    });
    let requeuer = Arc::new(Requeuer::new(mesh.clone()));
    let mut workers = Workers::new(mesh, topology, &shutdown);
    // Publishes backfills that wait to TIMELINE again when they are due. Push does so too, but may not be running.
    workers.spawn(consumers::LATER, requeuer, ConsumeOptions::default())?;
    for lane in lanes {
        let options = ConsumeOptions {
            in_flight_max: config.chunks_in_flight_max.of(lane),
            batch_max: config.chunks_in_flight_max.of(lane),
            paused: None,
        };
        workers.spawn(consumers::timeline(lane), handler.clone(), options)?;
    }
    let options = ConsumeOptions {
        in_flight_max: config.redrive_chunks_in_flight_max,
        batch_max: config.redrive_chunks_in_flight_max,
        paused: None,
    };
    workers.spawn(
        consumers::redrive(consumers::ConsumerKind::Timeline),
        handler,
        options,
    )?;
    // A publisher ends after the last handler is dropped; one that ends earlier has panicked.
    let stop = workers.stop();
    let mut publishers = JoinSet::new();
    publishers.spawn(reporter_task);
    publishers.spawn(watchers_task);
    let publishing = async move {
        let mut outcome = Ok(());
        while let Some(ended) = publishers.join_next().await {
            stop.cancel();
            outcome = outcome.and(ended);
        }
        outcome
    };
    let mut publishing = std::pin::pin!(publishing);
    let mut working = std::pin::pin!(workers.join());
    tokio::select! {
        published = &mut publishing => {
            working.await?;
            Ok(published?)
        }
        worked = &mut working => {
            // A handler that hangs keeps the publishers running. Its message is not acknowledged and will be
            // redelivered.
            let published = tokio::time::timeout(PUBLISHERS_DRAIN_LIMIT, publishing).await;
            worked?;
            Ok(published.unwrap_or(Ok(()))?)
        }
    }
}
