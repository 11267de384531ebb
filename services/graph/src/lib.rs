//! The graph service: who follows whom, over gRPC.
//!
//! The way of a follow: [`grpc`] checks it, makes keys of the ids, has the store apply it, and asks for a backfill
//! ([`backfill`]) so that the author's newest posts appear on the new follower's timeline. Fan-out reads followers back
//! through `ExportFollowers`, as of the version that a post has pinned.

mod backfill;
mod config;
mod domain;
mod error;
mod graph;
mod grpc;
mod import;
mod metrics;

use std::sync::Arc;

use herald_mesh::Mesh;
use herald_proto::v1::graph_service_server::{GraphServiceServer, SERVICE_NAME as GRAPH_SERVICE};
use herald_runtime::grpc as grpc_server;
use herald_store::{Follows, Posts, Users};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use config::Config;
pub use error::Error;
pub use metrics::Metrics;

use crate::{backfill::Backfills, graph::Graph};

/// What the service needs from outside.
pub struct Deps {
    /// Publishes backfills.
    pub mesh: Mesh,
    /// User ids.
    pub users: Arc<dyn Users>,
    /// Who follows whom.
    pub follows: Arc<dyn Follows>,
    /// Posts and request ids.
    pub posts: Arc<dyn Posts>,
    /// Where to serve gRPC.
    pub listener: TcpListener,
    /// Counters.
    pub metrics: Metrics,
}

/// Serves until `shutdown`, then finishes the calls under way.
pub async fn run(config: Config, deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    let Deps {
        mesh,
        users,
        follows,
        posts,
        listener,
        metrics,
    } = deps;
    let graph = Graph {
        config,
        users,
        follows,
        backfills: Backfills::new(mesh, posts),
        metrics,
    };
    let routes = Routes::new(GraphServiceServer::new(graph));
    let routes = grpc_server::with_health(routes, &[GRAPH_SERVICE], &shutdown).await;
    grpc_server::serve(listener, routes, shutdown)
        .await
        .map_err(Error::Serve)
}
