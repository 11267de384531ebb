//! Readiness and health while posts are refused: disk, POSTS stream, archive and broker.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use herald_mesh::{StreamLimits, TopologyConfig};
use herald_model::{Post, PostId, UserKey, time::Timestamp};
use herald_proto::v1::{post_service_server, timeline_service_server};
use herald_store::{Archived, Error, ErrorKind, Posts, Result};
use tokio::sync::watch;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{Setup, World, reason, submit, wait_until};

/// The archive of posts, on a disk that the test fills.
struct FillablePosts {
    posts: Arc<dyn Posts>,
    disk: Arc<Disk>,
}

#[derive(Default)]
struct Disk {
    /// Whether new posts are refused.
    full_for_posts: AtomicBool,
    /// Whether writes of the archive take no end.
    holds_archive: watch::Sender<bool>,
}

impl Disk {
    fn check(full: &AtomicBool) -> Result<()> {
        if full.load(Ordering::Acquire) {
            let message = "the disk is too full (store.disk_free_mb_min)";
            return Err(Error::new(ErrorKind::Full, message));
        }
        Ok(())
    }

    /// A setup of a gateway on this disk.
    fn setup(self: &Arc<Self>) -> Setup {
        let disk = self.clone();
        Setup {
            wrap_posts: Some(Box::new(move |posts| Arc::new(FillablePosts { posts, disk }))),
            ..Setup::default()
        }
    }
}

#[async_trait]
impl Posts for FillablePosts {
    async fn archive(&self, entries: &[Archived]) -> Result<()> {
        let mut holds = self.disk.holds_archive.subscribe();
        holds
            .wait_for(|holds| !holds)
            .await
            .expect("the disk has the sender");
        self.posts.archive(entries).await
    }

    async fn get(&self, posts: &[PostId]) -> Result<Vec<Option<Post>>> {
        self.posts.get(posts).await
    }

    async fn newest_by_author(&self, author: UserKey, up_to: PostId, limit: usize) -> Result<Vec<PostId>> {
        self.posts.newest_by_author(author, up_to, limit).await
    }

    async fn find_by_request(&self, author: UserKey, request_id: &str) -> Result<Option<PostId>> {
        self.posts.find_by_request(author, request_id).await
    }

    async fn capacity(&self) -> Result<()> {
        Disk::check(&self.disk.full_for_posts)
    }

    async fn last(&self) -> Result<Option<PostId>> {
        self.posts.last().await
    }

    async fn first_since(&self, moment: Timestamp) -> Result<PostId> {
        self.posts.first_since(moment).await
    }

    async fn list(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        self.posts.list(after, limit).await
    }

    async fn of_author(&self, author: UserKey, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        self.posts.of_author(author, after, limit).await
    }

    async fn erase_texts(&self, posts: &[PostId]) -> Result<u64> {
        self.posts.erase_texts(posts).await
    }

    async fn erase_damaged(&self, author: UserKey, posts: &[PostId], at: Timestamp) -> Result<Vec<PostId>> {
        self.posts.erase_damaged(author, posts, at).await
    }
}

/// Whether a service is SERVING; the empty name is the whole server.
async fn serves(world: &World, service: &str) -> bool {
    let request = HealthCheckRequest {
        service: service.into(),
    };
    let response = HealthClient::new(world.channel.clone()).check(request).await;
    response.unwrap().into_inner().status == 1
}

/// Waits until PostService and the whole server have this health.
async fn wait_until_serving(world: &World, serving: bool) {
    for service in ["", post_service_server::SERVICE_NAME] {
        wait_until("the health changes", async || {
            serves(world, service).await == serving
        })
        .await;
    }
}

/// The reason of the only failing check, which has this name.
fn failing(world: &World, check: &str) -> String {
    let failing = world.readiness.failing();
    assert!(failing.len() == 1 && failing[0].name == check, "{failing:?}");
    failing[0].reason.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_not_ready_until_space_is_freed() {
    let disk = Arc::new(Disk::default());
    let world = World::start_with(disk.setup()).await;
    wait_until_serving(&world, true).await;

    disk.full_for_posts.store(true, Ordering::Release);
    wait_until_serving(&world, false).await;
    assert!(failing(&world, "disk").contains("store.disk_free_mb_min"));
    // Timelines can still be read.
    assert!(serves(&world, timeline_service_server::SERVICE_NAME).await);
    let refused = world
        .posts()
        .submit_post(submit("107", "text"))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(reason(&refused), "STORE_FULL");
    assert!(
        refused.message().contains("store.disk_free_mb_min"),
        "{refused:?}"
    );

    disk.full_for_posts.store(false, Ordering::Release);
    wait_until_serving(&world, true).await;
    assert!(world.is_ready());
    world.post("107", "text").await;
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_is_not_ready_and_names_its_setting() {
    let world = World::start_with(Setup {
        topology: TopologyConfig {
            posts: StreamLimits {
                bytes_max: 1 << 20,
                ..TopologyConfig::default().posts
            },
            ..TopologyConfig::default()
        },
        ..Setup::default()
    })
    .await;
    wait_until_serving(&world, true).await;
    let text = "x".repeat(9_000);
    let refused = loop {
        if let Err(refused) = world.posts().submit_post(submit("107", &text)).await {
            break refused;
        }
    };
    assert_eq!(reason(&refused), "STREAM_FULL");
    assert!(
        refused.message().contains("stream POSTS is full")
            && refused.message().contains("topology.posts.bytes_max"),
        "{refused:?}"
    );
    wait_until_serving(&world, false).await;
    assert!(failing(&world, "posts_stream").contains("topology.posts.bytes_max"));
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_behind_is_not_ready() {
    let disk = Arc::new(Disk::default());
    let world = World::start_with(Setup {
        // The archive may be behind by half a second.
        topology: TopologyConfig {
            dedupe_window_seconds: 2,
            ..TopologyConfig::default()
        },
        ..disk.setup()
    })
    .await;
    wait_until_serving(&world, true).await;
    disk.holds_archive.send_replace(true);
    world.post("107", "text").await;
    wait_until_serving(&world, false).await;
    assert!(failing(&world, "archive").contains("ARCHIVE_BEHIND"));
    disk.holds_archive.send_replace(false);
    wait_until_serving(&world, true).await;
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_broker_is_not_serving() {
    let mut world = World::start().await;
    wait_until_serving(&world, true).await;
    world.server.kill().await.unwrap();
    wait_until_serving(&world, false).await;
    world.server.restart().await.unwrap();
    wait_until_serving(&world, true).await;
    world.stop().await.unwrap();
}
