//! The ledger in PostgreSQL: planned deliveries of each post and their outcomes.
//!
//! Plans, settlements and claims of concurrent callers are written in batches, each batch in one statement. A plan is
//! written once; an outcome is a small row beside it that an update changes in place.

mod audit;
mod backfill;
mod claim;
mod mark_dead;
pub(crate) mod partitions;
mod plan;
mod recipients;
pub(crate) mod row;
mod settle;
pub(super) mod trim;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::FutureExt as _;
use herald_model::{Channel, ChunkId, DeliveryState, PostId, Recipients, UserKey, time::Timestamp};

pub(super) use self::audit::SNAPSHOT;
use self::{claim::ClaimRequest, partitions::Partitions};
use super::{
    Postgres,
    batch::{BatchLimits, Batcher},
    keys,
};
use crate::{
    DeadMessage, Error, ErrorKind, ExpectedRevision, MarkedDead, Outcome, PostCounts, PostPlan,
    RecipientStatus, RecordedOutcome, Result, Settlement, SlicePlan,
};

/// Batches of plans. Their weight is the bytes of their recipients.
const PLAN_BATCHES: BatchLimits = BatchLimits {
    jobs_max: 128,
    weight_max: 2 << 20,
    in_flight_max: 2,
};

/// Batches of settlements and of claims. The weight of a settlement is the number of its settled recipients.
const OUTCOME_BATCHES: BatchLimits = BatchLimits {
    jobs_max: 256,
    weight_max: 1_000_000,
    in_flight_max: 2,
};

/// The cluster engine's [`Ledger`](crate::Ledger).
pub(crate) struct PostgresLedger {
    postgres: Postgres,
    partitions: Arc<Partitions>,
    plans: Batcher<SlicePlan, SlicePlan>,
    settlements: Batcher<Settlement, u64>,
    claims: Batcher<ClaimRequest, u64>,
}

impl PostgresLedger {
    /// Starts the tasks that write batches. Must be called inside of the runtime of the engine.
    pub(crate) fn new(postgres: Postgres) -> Self {
        let partitions = Arc::new(Partitions::new(postgres.clone()));
        let shared = (postgres.clone(), Arc::clone(&partitions));
        let plans = Batcher::start(PLAN_BATCHES, plan::weight, move |plans| {
            let (postgres, partitions) = shared.clone();
            async move { plan::write(&postgres, &partitions, &plans).await }.boxed()
        });
        let shared = (postgres.clone(), Arc::clone(&partitions));
        let settlements = Batcher::start(OUTCOME_BATCHES, settle::weight, move |settlements| {
            let (postgres, partitions) = shared.clone();
            async move { settle::write(&postgres, &partitions, &settlements).await }.boxed()
        });
        let shared = (postgres.clone(), Arc::clone(&partitions));
        let claims = Batcher::start(
            OUTCOME_BATCHES,
            |_| 1,
            move |requests| {
                let (postgres, partitions) = shared.clone();
                async move { claim::write(&postgres, &partitions, &requests).await }.boxed()
            },
        );
        Self {
            postgres,
            partitions,
            plans,
            settlements,
            claims,
        }
    }
}

/// The number of a channel in rows.
pub(crate) const fn channel_number(channel: Channel) -> i16 {
    match channel {
        Channel::Timeline => 0,
        Channel::Push => 1,
    }
}

/// The key of a chunk in rows: post, channel and id.
type ChunkKey = (i64, i16, i64);

fn chunk_key(post: PostId, channel: Channel, chunk: ChunkId) -> ChunkKey {
    (
        post.0.cast_signed(),
        channel_number(channel),
        chunk.0.cast_signed(),
    )
}

/// The channel of a number in rows.
fn channel_of(number: i16) -> Result<Channel> {
    Channel::ALL
        .into_iter()
        .find(|channel| channel_number(*channel) == number)
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a row of the ledger has an unknown channel"))
}

/// The greatest id in a list that excludes its ids: above the range of bigint there are none.
fn exclusive(post: Option<PostId>) -> i64 {
    post.map_or(-1, |post| keys::bigint(post.0))
}

#[async_trait]
impl crate::Ledger for PostgresLedger {
    async fn plan(&self, plan: SlicePlan) -> Result<SlicePlan> {
        can_fail!("store.plan");
        self.plans.run(plan).await
    }

    async fn settle(&self, settlement: &Settlement) -> Result<u64> {
        can_fail!("store.settle");
        let is_whole = matches!(settlement.outcome, Outcome::Delivered { .. });
        if settlement.base == ExpectedRevision::Any && !is_whole {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a mixed outcome needs an expected revision",
            ));
        }
        let revision = self.settlements.run(settlement.clone()).await;
        can_fail!("store.settled");
        revision
    }

    async fn claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        base: u64,
        lease: Duration,
    ) -> Result<u64> {
        can_fail!("store.claim");
        self.claims
            .run(ClaimRequest {
                post,
                channel,
                chunk,
                base,
                lease,
            })
            .await
    }

    async fn extend_claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        revision: u64,
        lease: Duration,
    ) -> Result<()> {
        claim::extend(&self.postgres, (post, channel, chunk), revision, lease).await
    }

    async fn release_claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        revision: u64,
    ) -> Result<()> {
        claim::release(&self.postgres, (post, channel, chunk), revision).await
    }

    async fn mark_dead(&self, dead: &DeadMessage, at: Timestamp) -> Result<Option<MarkedDead>> {
        mark_dead::mark(&self.postgres, &self.partitions, dead, at).await
    }

    async fn record_backfill(&self, posts: &[PostId], recipients: &Recipients) -> Result<()> {
        backfill::record(&self.postgres, posts, recipients).await
    }

    async fn outcome(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
    ) -> Result<Option<RecordedOutcome>> {
        can_fail!("store.outcome");
        row::read_outcome(&self.postgres, post, channel, chunk).await
    }

    async fn counts(&self, post: PostId) -> Result<Option<PostCounts>> {
        row::count(&self.postgres, post).await
    }

    async fn recipients(
        &self,
        post: PostId,
        channel: Channel,
        state: Option<DeliveryState>,
        after: Option<UserKey>,
        limit: usize,
    ) -> Result<Vec<RecipientStatus>> {
        let query = recipients::Query {
            post,
            channel,
            state,
            after,
            limit,
        };
        query.read(&self.postgres).await
    }

    async fn posts(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        audit::posts(&self.postgres, after, limit).await
    }

    async fn audit(&self, post: PostId) -> Result<Option<PostPlan>> {
        audit::read(&self.postgres, post).await
    }
}
