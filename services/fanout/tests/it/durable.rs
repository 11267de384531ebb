//! A plan that the disk can't sync.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use herald_fanout::Config;
use herald_mesh::{consumers, streams};
use herald_model::{Channel, ChunkId, DeliveryState, Lane, PostId, Recipients, UserKey, time::Timestamp};
use herald_store::{
    DeadMessage, Error, ErrorKind, Ledger, MarkedDead, PostCounts, PostPlan, RecipientStatus,
    RecordedOutcome, Result, Settlement, SlicePlan,
};

use crate::harness::{World, until};

/// A ledger that writes plans and, while `broken`, fails to sync them.
struct FailingSync {
    ledger: Arc<dyn Ledger>,
    broken: AtomicBool,
    kind: ErrorKind,
    plans: AtomicUsize,
}

#[async_trait]
impl Ledger for FailingSync {
    async fn plan(&self, plan: SlicePlan) -> Result<SlicePlan> {
        let plan = self.ledger.plan(plan).await?;
        self.plans.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Err(Error::new(self.kind, "can't sync"));
        }
        Ok(plan)
    }

    async fn settle(&self, _: &Settlement) -> Result<u64> {
        unreachable!("fan-out only plans")
    }

    async fn claim(&self, _: PostId, _: Channel, _: ChunkId, _: u64, _: Duration) -> Result<u64> {
        unreachable!("fan-out only plans")
    }

    async fn extend_claim(&self, _: PostId, _: Channel, _: ChunkId, _: u64, _: Duration) -> Result<()> {
        unreachable!("fan-out only plans")
    }

    async fn release_claim(&self, _: PostId, _: Channel, _: ChunkId, _: u64) -> Result<()> {
        unreachable!("fan-out only plans")
    }

    async fn mark_dead(&self, _: &DeadMessage, _: Timestamp) -> Result<Option<MarkedDead>> {
        unreachable!("fan-out only plans")
    }

    async fn record_backfill(&self, _: &[PostId], _: &Recipients) -> Result<()> {
        unreachable!("fan-out only plans")
    }

    async fn outcome(&self, _: PostId, _: Channel, _: ChunkId) -> Result<Option<RecordedOutcome>> {
        unreachable!("fan-out only plans")
    }

    async fn counts(&self, _: PostId) -> Result<Option<PostCounts>> {
        unreachable!("fan-out only plans")
    }

    async fn recipients(
        &self,
        _: PostId,
        _: Channel,
        _: Option<DeliveryState>,
        _: Option<UserKey>,
        _: usize,
    ) -> Result<Vec<RecipientStatus>> {
        unreachable!("fan-out only plans")
    }

    async fn posts(&self, _: Option<PostId>, _: usize) -> Result<Vec<PostId>> {
        unreachable!("fan-out only plans")
    }

    async fn audit(&self, _: PostId) -> Result<Option<PostPlan>> {
        unreachable!("fan-out only plans")
    }
}

/// Starts with a ledger that fails to sync plans.
async fn world_that_fails(kind: ErrorKind) -> (World, Arc<FailingSync>) {
    let mut failing_sync = None;
    let config = Config {
        slice_recipients_max: 1_024,
        ..Config::default()
    };
    let world = World::with_ledger(config, |ledger| {
        failing_sync
            .insert(Arc::new(FailingSync {
                ledger,
                broken: AtomicBool::new(true),
                kind,
                plans: AtomicUsize::new(0),
            }))
            .clone()
    })
    .await;
    (world, failing_sync.unwrap())
}

#[tokio::test]
async fn nothing_is_published_before_the_plan_is_durable_and_a_retry_publishes_that_plan() {
    let (world, failing_sync) = world_that_fails(ErrorKind::Unavailable).await;
    let users = world.users(1_102).await;
    let (author, followers, late) = (users[0], &users[1..=1_100], users[1_101]);
    // Followers of two slices.
    world.follow(author, followers).await;
    world.post(author, Lane::Normal).await;
    until(async || failing_sync.plans.load(Ordering::SeqCst) >= 1).await;
    // The first attempt has pinned the followers: these changes come too late, for both slices.
    world.unfollow(author, &[followers[0], followers[1_099]]).await;
    world.follow(author, &[late]).await;
    let before = failing_sync.plans.load(Ordering::SeqCst);
    until(async || failing_sync.plans.load(Ordering::SeqCst) >= before + 2).await;
    let last = async |stream| world.mesh.last_sequence(stream).await.unwrap();
    let fanout = consumers::fanout(Lane::Normal);
    let floor = async || world.mesh.ack_floor(streams::POSTS, fanout).await.unwrap();
    assert_eq!(
        (
            last(streams::TIMELINE).await,
            last(streams::SLICES).await,
            floor().await
        ),
        (0, 0, 0)
    );

    failing_sync.broken.store(false, Ordering::SeqCst);
    until(async || last(streams::TIMELINE).await == 2 && floor().await == 1).await;
    assert_eq!(last(streams::SLICES).await, 1);
    let chunks = world.chunks().await;
    let recipients: Vec<UserKey> = chunks.into_iter().flat_map(|(_, users)| users).collect();
    assert_eq!(recipients, followers);
}

#[tokio::test]
async fn a_post_waits_for_room_on_the_disk_and_spends_no_attempt() {
    let (world, failing_sync) = world_that_fails(ErrorKind::Full).await;
    let users = world.users(2).await;
    world.follow(users[0], &users[1..]).await;
    world.post(users[0], Lane::Normal).await;
    until(async || failing_sync.plans.load(Ordering::SeqCst) >= 3).await;
    assert_eq!(world.metrics.waiting.get(), 1);
    failing_sync.broken.store(false, Ordering::SeqCst);
    let fanout = consumers::fanout(Lane::Normal);
    until(async || world.mesh.ack_floor(streams::POSTS, fanout).await.unwrap() == 1).await;
    assert_eq!(world.chunks().await, [(1, users[1..].to_vec())]);
    assert_eq!(world.deliveries(fanout).await, 1);
    assert_eq!(world.metrics.waiting.get(), 0);
}
