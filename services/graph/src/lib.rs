//! The graph service: stores the followers of each author and serves them over gRPC.
//!
//! Steps of a Follow: [`grpc`] validates it, finds or assigns the keys of both users, applies the change to the store,
//! and publishes a backfill ([`adapters`]), which delivers the author's newest posts to the follower's timeline. Fan-out
//! reads followers through `ExportFollowers`: at the newest follow version, which it pins, then at that one.

mod adapters;
mod config;
mod domain;
mod error;
mod graph;
mod grpc;
mod metrics;
mod pace;
mod quota;

use std::sync::Arc;

use futures::future::BoxFuture;
use herald_mesh::Mesh;
use herald_proto::{
    mesh_v1::follower_service_server::{FollowerServiceServer, SERVICE_NAME as FOLLOWER_SERVICE},
    v1::graph_service_server::{GraphServiceServer, SERVICE_NAME as GRAPH_SERVICE},
};
use herald_runtime::grpc::{self as grpc_server, Listener};
use herald_store::{Follows, Posts, Users};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use config::Config;
pub use error::Error;
pub use metrics::Metrics;

use crate::{adapters::Backfills, graph::Graph, pace::Pace, quota::FollowQuota};

/// Dependencies of the service.
pub struct Deps {
    /// Connection to the broker, for backfills.
    pub mesh: Mesh,
    /// User ids and their keys.
    pub users: Arc<dyn Users>,
    /// The follows and their history.
    pub follows: Arc<dyn Follows>,
    /// Posts, to find out whether an author has any.
    pub posts: Arc<dyn Posts>,
    /// Listener of the gRPC port.
    pub listener: Listener,
    /// Metrics of the service.
    pub metrics: Metrics,
}

/// Serves until `shutdown`, then finishes the calls in flight.
pub fn run(config: Config, deps: Deps, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // A boxed future is compiled in this crate; an `async fn` would be compiled again in every crate that calls it.
    Box::pin(serve(config, deps, shutdown))
}

async fn serve(config: Config, deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate().map_err(Error::Config)?;
    let Deps {
        mesh,
        users,
        follows,
        posts,
        listener,
        metrics,
    } = deps;
    let graph = Graph {
        quota: FollowQuota::new(config.following_max, follows.clone()),
        config,
        users,
        follows,
        backfills: Backfills::new(mesh, posts),
        metrics,
        pace: Pace::new(),
    };
    let routes =
        Routes::new(GraphServiceServer::new(graph.clone())).add_service(FollowerServiceServer::new(graph));
    grpc_server::serve(
        "graph",
        listener,
        routes,
        &[GRAPH_SERVICE, FOLLOWER_SERVICE],
        shutdown,
    )
    .await
    .map_err(Error::Serve)
}

#[cfg(test)]
mod tests {
    use herald_local_nats::Server;
    use herald_proto::{
        mesh_v1::{ExportFollowersRequest, follower_service_client::FollowerServiceClient},
        v1::{self, graph_service_client::GraphServiceClient},
    };
    use herald_runtime::metrics::Shared;
    use herald_store::embedded::{self, Embedded};
    use tempfile::TempDir;
    use tokio::net::TcpListener;
    use tonic_types::StatusExt as _;

    use super::*;

    #[tokio::test]
    async fn an_export_at_a_version_of_the_future_is_out_of_range() {
        let data = tempfile::tempdir().unwrap();
        let server = Server::start(herald_local_nats::Config::default()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let deps = deps(&data, &server, listener).await;
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(Config::default(), deps, stop.clone()));
        let mut client = FollowerServiceClient::connect(url).await.unwrap();
        for follow_version in [1, u64::MAX] {
            let request = ExportFollowersRequest {
                author_key: 1,
                follow_version,
                ..ExportFollowersRequest::default()
            };
            let mut pages = client.export_followers(request).await.unwrap().into_inner();
            let error = pages.message().await.unwrap_err();
            assert_eq!(error.code(), tonic::Code::OutOfRange, "{error:?}");
            let info = error.get_details_error_info().unwrap();
            assert_eq!(info.reason, "FOLLOW_VERSION_UNKNOWN");
        }
        drop(client);
        stop.cancel();
        running.await.unwrap().unwrap();
    }

    async fn deps(data: &TempDir, server: &Server, listener: TcpListener) -> Deps {
        let store = Embedded::open(&embedded::Config {
            data_dir: data.path().into(),
            ..embedded::Config::default()
        });
        let stores = store.unwrap().stores();
        let mesh = Mesh::connect(&herald_mesh::Config::at(server.client_url())).await;
        Deps {
            mesh: mesh.unwrap(),
            users: stores.users,
            follows: stores.follows,
            posts: stores.posts,
            listener: listener.into(),
            metrics: Shared::new().register(Metrics::new),
        }
    }

    #[tokio::test]
    async fn a_configuration_out_of_bounds_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let server = Server::start(herald_local_nats::Config::default()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let deps = deps(&data, &server, listener).await;
        let config = Config {
            export_page_followers: 0,
            ..Config::default()
        };
        let ended = run(config, deps, CancellationToken::new()).await;
        assert!(matches!(ended, Err(Error::Config(_))), "{ended:?}");
    }

    fn assert_refused(status: &tonic::Status, subject: &str) {
        assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
        assert_eq!(status.get_details_error_info().unwrap().reason, "QUOTA_EXCEEDED");
        let quota = status.get_details_quota_failure().unwrap();
        assert_eq!(quota.violations[0].subject, subject);
        assert!(status.get_details_retry_info().is_none());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_call_that_follows_counts_against_the_quota() {
        let data = tempfile::tempdir().unwrap();
        let server = Server::start(herald_local_nats::Config::default()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let deps = deps(&data, &server, listener).await;
        let metrics = deps.metrics.clone();
        let config = Config {
            following_max: 3,
            backfill: false,
            ..Config::default()
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(config, deps, stop.clone()));
        let mut client = GraphServiceClient::connect(url).await.unwrap();
        let follow = |author: &str| v1::Follow {
            follower_id: "ann".into(),
            author_id: author.into(),
            notify: None,
        };
        let one = |author: &str| v1::FollowRequest {
            follow: Some(follow(author)),
        };
        client.follow(one("a")).await.unwrap();
        let batch = |authors: &[&str]| v1::BatchFollowRequest {
            follows: authors.iter().map(|author| follow(author)).collect(),
        };
        // All of a batch, or nothing.
        let refused = client
            .batch_follow(batch(&["a", "b", "c", "d"]))
            .await
            .unwrap_err();
        assert_refused(&refused, "follows[3].follower_id");
        let applied = client
            .batch_follow(batch(&["a", "b"]))
            .await
            .unwrap()
            .into_inner();
        assert_eq!((applied.changed_count, applied.unchanged_count), (1, 1));
        let import = v1::ImportFollowsRequest {
            follows: ["b", "c", "d", "ann", "a", "e"].map(follow).into(),
        };
        let imported = client.import_follows(futures::stream::iter([import])).await;
        let imported = imported.unwrap().into_inner();
        assert_eq!(
            (
                imported.imported_count,
                imported.unchanged_count,
                imported.failed_count
            ),
            (1, 2, 3),
            "{imported:?}"
        );
        let mut failed: Vec<_> = imported.failures.iter().map(|failure| failure.index).collect();
        failed.sort_unstable();
        assert_eq!(failed, [2, 3, 5]);
        assert_refused(&client.follow(one("f")).await.unwrap_err(), "follow.follower_id");
        client.follow(one("a")).await.unwrap();
        let unfollow = v1::UnfollowRequest {
            follower_id: "ann".into(),
            author_id: "a".into(),
        };
        client.unfollow(unfollow).await.unwrap();
        client.follow(one("f")).await.unwrap();
        assert_eq!(metrics.follows_refused.get(), 4);
        drop(client);
        stop.cancel();
        running.await.unwrap().unwrap();
    }
}
