//! The graph service: who follows whom, over gRPC.
//!
//! The way of a follow: [`grpc`] checks it, makes keys of the ids, has the store apply it, and asks for a backfill
//! ([`backfill`]) so that the author's newest posts appear on the new follower's timeline. Fan-out reads followers back
//! through `ExportFollowers`, as of the version that a post has pinned.

mod backfill;
mod config;
mod domain;
mod error;
mod grpc;
mod import;
mod metrics;

use herald_mesh::Mesh;
use herald_proto::v1::graph_service_server::GraphServiceServer;
use herald_store::Stores;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use error::Error;
pub use metrics::Metrics;

use crate::{backfill::Backfills, grpc::Graph};

/// What the service needs from outside.
pub struct Deps {
    /// Publishes backfills.
    pub mesh: Mesh,
    /// Users, follows and posts.
    pub stores: Stores,
    /// Where to serve gRPC.
    pub listener: TcpListener,
    /// Counters.
    pub metrics: Metrics,
}

/// Serves until `shutdown`, then finishes the calls under way.
pub async fn run(config: Config, deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    let Deps { mesh, stores, listener, metrics } = deps;
    let backfills = Backfills::new(mesh, stores.posts.clone());
    let graph = Graph::new(config, stores, backfills, metrics);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<GraphServiceServer<Graph>>().await;
    tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .layer(herald_runtime::grpc::ServerTraceLayer)
        .add_service(health_service)
        .add_service(GraphServiceServer::new(graph))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown.cancelled_owned())
        .await
        .map_err(Error::Serve)
}
