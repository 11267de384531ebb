//! The analytics service: writes posts, deletions and deliveries to Parquet files, and counts them.
//!
//! Steps of a message: [`handler`] parses it and sends it to the batcher of its stream. The [`batcher`] writes its rows
//! to the file of their table and hour, and counts them in the totals. Then the message is acknowledged. [`grpc`]
//! serves the totals.
//!
//! Any number of instances consume the same streams. Each has a lease of its own, `analytics/{instance}`, which owns the
//! files that it has announced; the others delete them when the instance has died ([`uncounted`]).

mod adapters;
mod batcher;
mod config;
mod domain;
mod error;
mod grpc;
mod handler;
mod metrics;
mod uncounted;

use std::sync::Arc;

use futures::future::BoxFuture;
use herald_mesh::{ConsumeOptions, ConsumerSpec, Mesh, Topology, consumers, streams};
use herald_proto::v1::analytics_service_server::{AnalyticsServiceServer, SERVICE_NAME as ANALYTICS_SERVICE};
use herald_runtime::grpc::{self as grpc_server, Listener};
use herald_runtime::wait::Waiting;
use herald_store::{HeldLease, LeaseHolder, Leases, Totals, Users, holder_id};
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
use crate::batcher::Batcher;
use crate::grpc::Analytics;
use crate::handler::MessageHandler;
use crate::uncounted::{Leftovers, delete_orphans_periodically};

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
    /// The leases of the instances.
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
/// While the store can't be reached for longer than the lease of the instance, it consumes nothing.
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
    let stop = shutdown.child_token();
    let mut workers: JoinSet<Result<(), Error>> = JoinSet::new();
    let consuming = Consuming {
        mesh,
        streams: [
            stream_consumers(
                &topology,
                streams::POSTS,
                consumers::ANALYTICS_POSTS,
                consumers::ConsumerKind::AnalyticsPosts,
                config.posts_in_flight_max,
            )?,
            stream_consumers(
                &topology,
                streams::EVENTS,
                consumers::ANALYTICS_EVENTS,
                consumers::ConsumerKind::AnalyticsEvents,
                config.events_in_flight_max,
            )?,
        ],
        totals: totals.clone(),
        users: users.clone(),
        files,
        metrics,
        config,
    };
    workers.spawn(consuming.run(leases, stop.clone()));
    let routes = Routes::new(AnalyticsServiceServer::new(Analytics { totals, users }));
    let serving = grpc_server::serve("analytics", listener, routes, &[ANALYTICS_SERVICE], stop.clone());
    workers.spawn(async move { serving.await.map_err(Error::Serve) });

    let mut outcome = Ok(());
    while let Some(ended) = workers.join_next().await {
        // The failure of one worker ends the whole service.
        stop.cancel();
        outcome = outcome.and(ended.map_err(Error::Worker).flatten());
    }
    outcome
}

/// The consumers of new and of redriven messages of a stream, each with its maximum number of messages in flight.
struct StreamConsumers {
    stream: &'static str,
    consumers: [(ConsumerSpec, usize); 2],
}

fn stream_consumers(
    topology: &Topology,
    stream: &'static str,
    consumer: &'static str,
    kind: consumers::ConsumerKind,
    in_flight_max: usize,
) -> Result<StreamConsumers, Error> {
    let spec = |name| topology.consumer(name).cloned().ok_or(Error::NoConsumer(name));
    let (first, redrive) = (spec(consumer)?, spec(consumers::redrive(kind))?);
    let in_flight_max = in_flight_max.min(first.ack_pending_max as usize);
    let redrive_max = (in_flight_max / 4).clamp(1, redrive.ack_pending_max as usize);
    Ok(StreamConsumers {
        stream,
        consumers: [(first, in_flight_max), (redrive, redrive_max)],
    })
}

/// Consumes the streams while this instance holds its lease.
struct Consuming {
    mesh: Mesh,
    streams: [StreamConsumers; 2],
    totals: Arc<dyn Totals>,
    users: Arc<dyn Users>,
    files: FileStore,
    metrics: Metrics,
    config: Config,
}

impl Consuming {
    /// Consumes until `stop`. The failure of a consumer cancels `stop`, too: it ends the whole service.
    async fn run(self, leases: Arc<dyn Leases>, stop: CancellationToken) -> Result<(), Error> {
        let lease = format!("analytics/{}", holder_id());
        let holder = LeaseHolder::new(leases, lease, self.config.lease_duration());
        let failure = parking_lot::Mutex::new(None);
        let consume = |lease| async {
            if let Err(error) = self.consume(lease).await {
                *failure.lock() = Some(error);
                stop.cancel();
            }
        };
        holder.run(&stop, consume).await;
        failure.into_inner().map_or(Ok(()), Err)
    }

    async fn consume(&self, lease: HeldLease) -> Result<(), Error> {
        let stop = lease.lost().child_token();
        let mut workers: JoinSet<Result<(), Error>> = JoinSet::new();
        for StreamConsumers { stream, consumers } in &self.streams {
            let batcher = Batcher {
                stream,
                consumer: consumers[0].0.name.clone(),
                rows_max: self.config.batch_rows_max,
                messages_max: self.config.batch_messages(consumers[0].1),
                age_max: self.config.batch_age_max(),
                totals: self.totals.clone(),
                files: self.files.clone(),
                metrics: self.metrics.clone(),
                flush: stop.clone(),
                owner: lease.fence().clone(),
                leftovers: Leftovers::default(),
            };
            workers.spawn(run_stream(
                self.mesh.clone(),
                self.users.clone(),
                consumers.clone(),
                batcher,
                stop.clone(),
            ));
        }
        let (totals, files, metrics) = (self.totals.clone(), self.files.clone(), self.metrics.clone());
        // A lease that lasts at one search has ended at the next one.
        let interval = 2 * self.config.lease_duration();
        let stopped = stop.clone();
        workers.spawn(async move {
            delete_orphans_periodically(&*totals, &files, &metrics, interval, &stopped).await;
            Ok(())
        });
        let mut outcome = Ok(());
        while let Some(ended) = workers.join_next().await {
            stop.cancel();
            outcome = outcome.and(ended.map_err(Error::Worker).flatten());
        }
        outcome
    }
}

/// Runs the batcher of a stream and its two consumers, of new and of redriven messages. Each consumer comes with its
/// maximum number of messages in flight.
async fn run_stream(
    mesh: Mesh,
    users: Arc<dyn Users>,
    consumers: [(ConsumerSpec, usize); 2],
    batcher: Batcher,
    stop: CancellationToken,
) -> Result<(), Error> {
    let (sender, inbox) = mpsc::channel(batcher.messages_max);
    let waiting = Waiting::new("analytics of posts", batcher.metrics.waiting.clone());
    // Ends when the last handler is dropped, after the consumers have drained. It runs on its own thread, because a
    // batch computes for milliseconds and would block other tasks of the runtime.
    let runtime = tokio::runtime::Handle::current();
    let batches = tokio::task::spawn_blocking(move || runtime.block_on(batcher.run(inbox)));
    let handler = Arc::new(MessageHandler {
        batcher: sender,
        users,
        waiting,
        stop: stop.clone(),
    });
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
