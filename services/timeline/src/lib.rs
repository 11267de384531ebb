//! The timeline service: puts posts on timelines.
//!
//! The way of a chunk ([`handler`]): into the timeline store, where it is readable at once; out to the watchers; wait until
//! it is durable; into the ledger; an event for analytics; and only then is the message acknowledged. A backfill
//! ([`backfill`]) does the same with an author's newest posts for new followers, without event and counts: it is not a
//! delivery that a post has planned. The ledger only notes it, before anything is on a timeline. A chunk that fails
//! permanently is bisected ([`isolate`](herald_failure::isolate)): only the recipients that cause the failure don't get the post.

mod adapters;
mod backfill;
mod config;
mod domain;
mod error;
mod handler;
mod metrics;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use herald_mesh::{ConsumeOptions, Mesh, Topology, Workers, consumers};
use herald_model::Lane;
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

/// How long what tells others may take to end after the last handler.
const HELPERS_END_MAX: Duration = Duration::from_secs(5);

/// What the service needs from outside.
pub struct Deps {
    /// Where chunks come from, and live entries and events go to.
    pub mesh: Mesh,
    /// The consumers to work on.
    pub topology: Arc<Topology>,
    /// What users read.
    pub timelines: Arc<dyn Timelines>,
    /// Where deliveries are recorded.
    pub ledger: Arc<dyn Ledger>,
    /// Where an author's newest posts are found.
    pub posts: Arc<dyn Posts>,
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
        timelines,
        ledger,
        posts,
        metrics,
    } = deps;
    let (watchers, telling) = Watchers::new(mesh.clone());
    let (reporter, reporting) = Reporter::new(mesh.clone());
    let backfiller = Backfiller {
        mesh: mesh.clone(),
        watchers: watchers.clone(),
        posts,
        timelines: timelines.clone(),
        ledger: ledger.clone(),
        posts_max: config.backfill_posts_max,
    };
    let chunks = Arc::new(TimelineHandler {
        timelines,
        ledger,
        watchers,
        reporter,
        backfiller,
        metrics,
        isolate_attempts_min: config.isolate_attempts_min,
    });
    let mut workers = Workers::new(mesh, topology, &shutdown);
    for lane in Lane::ALL {
        let options = ConsumeOptions {
            in_flight_max: config.chunks_in_flight_max.of(lane),
            batch_max: config.chunks_in_flight_max.of(lane),
            paused: None,
        };
        workers.spawn(consumers::timeline(lane), chunks.clone(), options)?;
    }
    let options = ConsumeOptions {
        in_flight_max: config.redrive_chunks_in_flight_max,
        batch_max: config.redrive_chunks_in_flight_max,
        paused: None,
    };
    workers.spawn(
        consumers::redrive(consumers::ConsumerKind::Timeline),
        chunks,
        options,
    )?;
    // Each ends when the last handler is gone; before that it can only have died.
    let stop = workers.stop();
    let mut helpers = JoinSet::new();
    helpers.spawn(reporting);
    helpers.spawn(telling);
    let helping = async move {
        let mut outcome = Ok(());
        while let Some(ended) = helpers.join_next().await {
            stop.cancel();
            outcome = outcome.and(ended);
        }
        outcome
    };
    let mut helping = std::pin::pin!(helping);
    let mut working = std::pin::pin!(workers.join());
    tokio::select! {
        died = &mut helping => {
            working.await?;
            Ok(died?)
        }
        worked = &mut working => {
            // A handler that hangs keeps them for ever. What it has done is not acknowledged.
            let helped = tokio::time::timeout(HELPERS_END_MAX, helping).await;
            worked?;
            Ok(helped.unwrap_or(Ok(()))?)
        }
    }
}
