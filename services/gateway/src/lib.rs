//! The gateway: the one public port.
//!
//! It accepts posts into the POSTS stream, shows timelines, keeps devices and preferences, tells what became of
//! deliveries, and sends calls to the graph, analytics and deadletter services on. It owns posts: the archive consumer runs here.
//!
//! The way of a post: [`grpc`] checks it, makes a key of the author's id, looks for an earlier post with the same request
//! id, asks the graph for the author's follow version (who is a follower of this post, for ever), and publishes. The
//! answer of the broker is the answer to the caller: from then on the post is durable. The archive consumer ([`archive`])
//! writes it to the store; until then it is read from the stream.

mod adapters;
mod archive;
mod archive_watermark;
mod config;
mod domain;
mod error;
mod feed;
mod grpc;
mod live;
mod metrics;
mod wire;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use herald_mesh::{ConsumeOptions, Mesh, Topology, Workers, consumers, streams};
use herald_runtime::http::Flag;
use herald_store::{Devices, Ledger, Posts, Preferences, Timelines, Users};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub use adapters::FollowVersions;
pub use config::Config;
pub use error::Error;
pub use metrics::Metrics;

use crate::{adapters::GraphFollowVersions, archive::Archive, archive_watermark::WatermarkReader};

/// What the service needs from outside.
pub struct Deps {
    /// Connected; its streams and consumers exist.
    pub mesh: Mesh,
    /// What they are.
    pub topology: Arc<Topology>,
    /// User ids.
    pub users: Arc<dyn Users>,
    /// Posts and request ids.
    pub posts: Arc<dyn Posts>,
    /// Where to push to.
    pub devices: Arc<dyn Devices>,
    /// What users want to hear.
    pub preferences: Arc<dyn Preferences>,
    /// What users read.
    pub timelines: Arc<dyn Timelines>,
    /// What became of each delivery.
    pub ledger: Arc<dyn Ledger>,
    /// Where to serve gRPC and gRPC-Web.
    pub listener: TcpListener,
    /// The graph service. May connect lazily.
    pub graph: Channel,
    /// The analytics service. May connect lazily.
    pub analytics: Channel,
    /// The deadletter service. May connect lazily.
    pub deadletter: Channel,
    /// The push service's VAPID public key, base64url; told to those who list devices.
    pub vapid_public_key: String,
    /// Set while calls are taken.
    pub ready: Flag,
    /// Counters.
    pub metrics: Metrics,
}

/// Serves until `shutdown`, then finishes the calls under way, ends watches, and drains the archive consumer.
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
        posts,
        devices,
        preferences,
        timelines,
        ledger,
        listener,
        graph,
        analytics,
        deadletter,
        vapid_public_key,
        ready,
        metrics,
    } = deps;
    check_same_stream(&mesh, &*posts).await?;

    let archive = Archive::new(posts.clone(), metrics.clone(), config.archive_batch_max);
    // Ends after the calls: a DeletePost under way waits for the archive.
    let archive_end = CancellationToken::new();
    let mut archiving = Workers::new(mesh.clone(), topology.clone(), &archive_end);
    let archive = Arc::new(archive);
    for (consumer, in_flight_max) in [
        (consumers::ARCHIVE, config.archive_in_flight_max),
        (
            consumers::redrive(consumers::ConsumerKind::Archive),
            config.archive_redrive_in_flight_max,
        ),
    ] {
        let options = ConsumeOptions {
            in_flight_max,
            batch_max: config.archive_batch_max.min(in_flight_max),
            ..ConsumeOptions::default()
        };
        archiving.spawn(consumer, archive.clone(), options)?;
    }
    drop(archive);

    let watermark_reader = WatermarkReader::new(mesh.clone(), posts.clone(), &topology);
    let archive_watermark = watermark_reader.archive_watermark();
    tokio::spawn(
        archive_end
            .clone()
            .run_until_cancelled_owned(watermark_reader.run()),
    );

    let timeout = Duration::from_millis(config.graph_timeout_ms);
    let versions = Arc::new(GraphFollowVersions::new(graph.clone(), timeout));
    let parts = grpc::Parts {
        mesh: mesh.clone(),
        topology: topology.clone(),
        users,
        posts,
        devices,
        preferences,
        timelines,
        ledger,
        archive_watermark,
        versions,
        graph,
        analytics,
        deadletter,
        vapid_public_key,
        metrics,
    };
    // Ends the calls too when the archive consumer fails.
    let calls_end = shutdown.child_token();
    let serving = async {
        ready.set(true);
        let served = grpc::serve(&config, parts, listener, calls_end.clone()).await;
        ready.set(false);
        archive_end.cancel();
        served
    };
    let archiving = async {
        let archived = archiving.join().await;
        calls_end.cancel();
        archived
    };
    let (served, archived) = tokio::join!(serving, archiving);
    archived?;
    served
}

/// Post ids are sequence numbers of POSTS. With a stream that ends before the store's last post, new posts would take old
/// ones' ids.
async fn check_same_stream(mesh: &Mesh, posts: &dyn Posts) -> Result<(), Error> {
    let Some(store_last) = posts.last().await? else {
        return Ok(());
    };
    let stream_last = mesh.last_sequence(streams::POSTS).await?;
    if stream_last < store_last.0 {
        return Err(Error::ForeignStore {
            stream_last,
            store_last: store_last.0,
        });
    }
    Ok(())
}
