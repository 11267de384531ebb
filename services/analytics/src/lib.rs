//! The analytics service: writes posts, deletions and deliveries to Parquet files, and counts them.
//!
//! Steps of a message: [`handler`] parses it and sends it to the batcher of its stream. The [`batcher`] writes its rows
//! to the file of their table and hour, and counts them in the totals. Then the message is acknowledged. [`grpc`]
//! serves the totals.

mod adapters;
mod batcher;
mod config;
mod domain;
mod error;
mod grpc;
mod handler;
mod lease;
mod metrics;

use std::sync::Arc;

use futures::future::BoxFuture;
use herald_mesh::{ConsumeOptions, ConsumerSpec, Mesh, Topology, consumers, streams};
use herald_proto::v1::analytics_service_server::{AnalyticsServiceServer, SERVICE_NAME as ANALYTICS_SERVICE};
use herald_runtime::grpc::{self as grpc_server, Listener};
use herald_store::{Leases, Totals, Users};
use object_store::ObjectStore;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use adapters::local;
pub use config::Config;
pub use error::{CommitError, Error};
pub use metrics::Metrics;

use crate::adapters::FileStore;
use crate::batcher::{Batcher, delete_orphaned};
use crate::grpc::Analytics;
use crate::handler::MessageHandler;

/// Maximum number of messages in one pull request.
const PULL_MAX: usize = 1_024;

/// Dependencies of the service.
pub struct Deps {
    /// Connection to the broker. The consumers of `topology` exist.
    pub mesh: Mesh,
    /// Streams and consumers.
    pub topology: Arc<Topology>,
    /// Store of the totals.
    pub totals: Arc<dyn Totals>,
    /// Leases of the processes that write files.
    pub leases: Arc<dyn Leases>,
    /// User ids and their keys.
    pub users: Arc<dyn Users>,
    /// Object store of the files; `None` uses the directory `Config::dir`.
    pub objects: Option<Arc<dyn ObjectStore>>,
    /// Listener of the gRPC port.
    pub listener: Listener,
    /// Metrics of the service.
    pub metrics: Metrics,
}

/// Consumes and serves until `shutdown`, then finishes the messages and calls in flight.
///
/// Each process holds a lease. At its start it deletes the files that were announced and not counted by a process whose
/// lease has ended.
pub fn run(config: Config, deps: Deps, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // A boxed future is compiled in this crate; an `async fn` would be compiled again in every crate that calls it.
    Box::pin(serve(config, deps, shutdown))
}

async fn serve(config: Config, deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate().map_err(Error::Config)?;
    let Deps {
        mesh,
        topology,
        totals,
        leases,
        users,
        objects,
        listener,
        metrics,
    } = deps;
    let objects = match objects {
        Some(objects) => objects,
        None => local(&config.dir).map_err(Error::Open)?,
    };
    let files = FileStore::new(objects);
    let lease = lease::Held::acquire(leases).await.map_err(Error::Lease)?;
    delete_orphaned(&*totals, &files, &metrics)
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
            owner: lease.fence().clone(),
            files: files.clone(),
            metrics: metrics.clone(),
            flush: stop.clone(),
            leftovers: parking_lot::Mutex::default(),
        };
        let consumers = [(first, in_flight_max), (redrive, redrive_max)];
        workers.spawn(run_stream(mesh.clone(), consumers, batcher, stop.clone()));
    }
    let routes = Routes::new(AnalyticsServiceServer::new(Analytics { totals, users }));
    let serving = grpc_server::serve(listener, routes, &[ANALYTICS_SERVICE], stop.clone());
    workers.spawn(async move { serving.await.map_err(Error::Serve) });

    let working = async {
        let mut outcome = Ok(());
        while let Some(ended) = workers.join_next().await {
            // The failure of one worker ends the whole service.
            stop.cancel();
            outcome = outcome.and(ended.map_err(Error::Worker).flatten());
        }
        outcome
    };
    let outcome = tokio::select! {
        outcome = working => outcome,
        lost = lease.keep() => Err(Error::Lease(lost)),
    };
    lease.release().await;
    outcome
}

/// Runs the batcher of a stream and its two consumers, of new and of redriven messages. Each consumer comes with its
/// maximum number of messages in flight.
async fn run_stream(
    mesh: Mesh,
    consumers: [(ConsumerSpec, usize); 2],
    batcher: Batcher,
    stop: CancellationToken,
) -> Result<(), Error> {
    let (sender, inbox) = mpsc::channel(batcher.messages_max);
    // Ends when the last handler is dropped, after the consumers have drained. It runs on its own thread, because a
    // batch computes for milliseconds and would block other tasks of the runtime.
    let runtime = tokio::runtime::Handle::current();
    let batches = tokio::task::spawn_blocking(move || runtime.block_on(batcher.run(inbox)));
    let handler = Arc::new(MessageHandler { batcher: sender });
    let all = consumers.map(|(consumer, in_flight_max)| {
        let (mesh, handler, stop) = (mesh.clone(), handler.clone(), stop.clone());
        async move {
            let options = ConsumeOptions {
                in_flight_max,
                batch_max: in_flight_max.div_ceil(4).min(PULL_MAX),
                paused: None,
            };
            let consumed = mesh.consume(&consumer, handler, options, stop.clone()).await;
            // The end of one consumer ends the other.
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
        ended = &mut batches => {
            // Without the batcher every message would be retried.
            stop.cancel();
            consuming.await.map_err(Error::Consume)?;
            return ended.map_err(Error::Worker);
        }
    }
    batches.await.map_err(Error::Worker)
}
