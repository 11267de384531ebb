//! The analytics service: keeps what happened as Parquet files, and counts it.
//!
//! The way of a message ([`handler`]): read, handed to its stream's batcher ([`batcher`]), written into the file of its
//! table and hour together with others, counted in the totals; and only then acknowledged. [`grpc`] answers from the
//! totals.

mod adapters;
mod batcher;
mod config;
mod domain;
mod error;
mod grpc;
mod handler;
mod metrics;

use std::sync::Arc;

use futures::future::BoxFuture;
use herald_mesh::{ConsumeOptions, ConsumerSpec, Mesh, Topology, consumers, streams};
use herald_proto::v1::analytics_service_server::{AnalyticsServiceServer, SERVICE_NAME as ANALYTICS_SERVICE};
use herald_runtime::grpc as grpc_server;
use herald_store::{Totals, Users};
use object_store::ObjectStore;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use adapters::local;
pub use config::Config;
pub use error::{CommitError, Error};
pub use metrics::Metrics;

use crate::adapters::Files;
use crate::batcher::{Batcher, remove_intended};
use crate::grpc::Analytics;
use crate::handler::Messages;

/// Messages that are asked for at a time, at most.
const PULL_MAX: usize = 1_024;

/// What the service needs from outside.
pub struct Deps {
    /// Where messages come from.
    pub mesh: Mesh,
    /// The consumers to work on.
    pub topology: Arc<Topology>,
    /// Where messages are counted.
    pub totals: Arc<dyn Totals>,
    /// Where authors' ids are found.
    pub users: Arc<dyn Users>,
    /// Where the files go; `None`: the folder that the configuration names.
    pub objects: Option<Arc<dyn ObjectStore>>,
    /// Where to serve gRPC.
    pub listener: TcpListener,
    /// Counters.
    pub metrics: Metrics,
}

/// Works and serves until `shutdown`, then finishes the messages and calls under way.
///
/// Only one may run on the same totals: at its start it deletes the files that were announced and not counted, and those of
/// another one in the middle of a batch would be among them.
pub fn run(config: Config, deps: Deps, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // A boxed future is compiled here; an `async fn` would be compiled again in every crate that calls it.
    Box::pin(serve(config, deps, shutdown))
}

async fn serve(config: Config, deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate().map_err(Error::Config)?;
    let Deps {
        mesh,
        topology,
        totals,
        users,
        objects,
        listener,
        metrics,
    } = deps;
    let objects = match objects {
        Some(objects) => objects,
        None => local(&config.dir).map_err(Error::Open)?,
    };
    let files = Files::new(objects);
    remove_intended(&*totals, &files, &metrics)
        .await
        .map_err(Error::Leftovers)?;

    let stop = shutdown.child_token();
    let mut workers: JoinSet<Result<(), Error>> = JoinSet::new();
    let consumer = |name| topology.consumer(name).cloned().ok_or(Error::NoConsumer(name));
    for (stream, name, redrive, in_flight_max) in [
        (
            streams::POSTS,
            consumers::ANALYTICS_POSTS,
            consumers::redrive(consumers::ConsumerKind::AnalyticsPosts),
            config.posts_in_flight_max,
        ),
        (
            streams::EVENTS,
            consumers::ANALYTICS_EVENTS,
            consumers::redrive(consumers::ConsumerKind::AnalyticsEvents),
            config.events_in_flight_max,
        ),
    ] {
        let (first, redrive) = (consumer(name)?, consumer(redrive)?);
        let in_flight_max = in_flight_max.min(first.ack_pending_max as usize);
        let redrive_max = (in_flight_max / 4).clamp(1, redrive.ack_pending_max as usize);
        let batcher = Batcher {
            stream,
            rows_max: config.batch_rows_max,
            messages_max: config.batch_messages(in_flight_max),
            age_max: config.batch_age_max(),
            totals: totals.clone(),
            files: files.clone(),
            metrics: metrics.clone(),
            abort: stop.clone(),
            leftovers: parking_lot::Mutex::default(),
        };
        let consumers = [(first, in_flight_max), (redrive, redrive_max)];
        workers.spawn(work(mesh.clone(), consumers, batcher, stop.clone()));
    }
    let routes = Routes::new(AnalyticsServiceServer::new(Analytics { totals, users }));
    let routes = grpc_server::with_health(routes, &[ANALYTICS_SERVICE], &stop).await;
    let serving = grpc_server::serve(listener, routes, stop.clone());
    workers.spawn(async move { serving.await.map_err(Error::Serve) });

    let mut outcome = Ok(());
    while let Some(ended) = workers.join_next().await {
        // One part's failure ends the service: it would be half of one otherwise.
        stop.cancel();
        outcome = outcome.and(ended.map_err(Error::Worker).flatten());
    }
    outcome
}

/// Works on the consumers of one stream's messages, the first ones and the redriven ones, each with so many in flight, and
/// writes what they bring.
async fn work(
    mesh: Mesh,
    consumers: [(ConsumerSpec, usize); 2],
    batcher: Batcher,
    stop: CancellationToken,
) -> Result<(), Error> {
    let (sender, inbox) = mpsc::channel(batcher.messages_max);
    // Ends when the last handler is gone: that is, after the consumers have drained. On a thread of its own, because a batch is
    // milliseconds of work at a time, and others' messages wait for the runtime's threads.
    let runtime = tokio::runtime::Handle::current();
    let batches = tokio::task::spawn_blocking(move || runtime.block_on(batcher.run(inbox)));
    let handler = Arc::new(Messages { batcher: sender });
    let all = consumers.map(|(consumer, in_flight_max)| {
        let (mesh, handler, stop) = (mesh.clone(), handler.clone(), stop.clone());
        async move {
            let options = ConsumeOptions {
                in_flight_max,
                batch_max: in_flight_max.div_ceil(4).min(PULL_MAX),
                paused: None,
            };
            let consumed = mesh.consume(&consumer, handler, options, stop.clone()).await;
            // One without the other would be half of it.
            stop.cancel();
            consumed
        }
    });
    drop(handler);
    let consuming = async move {
        let [first, redriven] = all;
        let (first, redriven) = tokio::join!(first, redriven);
        first.and(redriven)
    };
    tokio::pin!(consuming);
    tokio::pin!(batches);
    tokio::select! {
        consumed = &mut consuming => consumed.map_err(Error::Consume)?,
        died = &mut batches => {
            // Without its batcher the consumer would only have messages come again.
            stop.cancel();
            consuming.await.map_err(Error::Consume)?;
            return died.map_err(Error::Worker);
        }
    }
    batches.await.map_err(Error::Worker)
}
