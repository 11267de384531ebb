//! A plan that the disk can't sync.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use async_trait::async_trait;
use herald_fanout::Config;
use herald_mesh::{Subject, consumers, streams};
use herald_model::{Channel, ChunkId, DeliveryState, Lane, PostId, Recipients, UserKey, time::Timestamp};
use herald_proto::mesh_v1::PostCreated;
use herald_store::{
    Durable, Error, ErrorKind, Ledger, MarkedDead, PostCounts, PostPlan, RecordedOutcome, Result, Settlement,
    SlicePlan,
};

use crate::harness::{World, until};

/// A ledger that writes plans and, while `broken`, fails to sync them.
struct FailingSync {
    ledger: Arc<dyn Ledger>,
    broken: AtomicBool,
    plans: AtomicUsize,
}

#[async_trait]
impl Ledger for FailingSync {
    async fn plan(&self, plan: &SlicePlan) -> Result<Durable> {
        let durable = self.ledger.plan(plan).await?;
        self.plans.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Ok(Box::pin(async {
                Err(Error::new(ErrorKind::Unavailable, "can't sync"))
            }));
        }
        Ok(durable)
    }

    async fn settle(&self, _: &Settlement) -> Result<u64> {
        unreachable!("fan-out only plans")
    }

    async fn mark_dead(&self, _: PostId, _: Channel, _: ChunkId, _: Timestamp) -> Result<Option<MarkedDead>> {
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
    ) -> Result<Vec<(UserKey, DeliveryState)>> {
        unreachable!("fan-out only plans")
    }

    async fn posts(&self, _: Option<PostId>, _: usize) -> Result<Vec<PostId>> {
        unreachable!("fan-out only plans")
    }

    async fn audit(&self, _: PostId) -> Result<Option<PostPlan>> {
        unreachable!("fan-out only plans")
    }
}

#[tokio::test]
async fn no_slice_is_published_and_no_post_is_acknowledged_before_the_plan_is_durable() {
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
                plans: AtomicUsize::new(0),
            }))
            .clone()
    })
    .await;
    let failing_sync = failing_sync.unwrap();
    // Followers of two slices.
    let users = world.users(1_100).await;
    world.follow(users[0], &users[1..]).await;
    let post = PostCreated {
        author_key: users[0].0,
        author_id: "user 0".into(),
        ..PostCreated::default()
    };
    let subject = Subject::PostCreated(Lane::Normal);
    world.mesh.publish(subject, Some("post"), &post).await.unwrap();
    until(async || failing_sync.plans.load(Ordering::SeqCst) >= 2).await;
    let last = async |stream| world.mesh.last_sequence(stream).await.unwrap();
    let fanout = consumers::fanout(Lane::Normal);
    let floor = async || world.mesh.ack_floor(streams::POSTS, fanout).await.unwrap();
    // The first attempt published the chunk; the broker deduplicated that of the second attempt.
    assert_eq!(last(streams::TIMELINE).await, 1);
    assert_eq!((last(streams::SLICES).await, floor().await), (0, 0));

    failing_sync.broken.store(false, Ordering::SeqCst);
    until(async || last(streams::TIMELINE).await == 2 && floor().await == 1).await;
    assert_eq!(last(streams::SLICES).await, 1);
}
