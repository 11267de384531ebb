//! Tests against real servers: PostgreSQL, shared by the tests of this process, and a Redis server for each test.

mod deliver;
mod differential;
mod erased;
mod losses;
mod merges;
mod rebuilds;
mod servers;
mod users;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use herald_local_stores::{Postgres as PostgresServer, Redis, RedisOptions, required};
use herald_model::{Channel, time::Timestamp};
use tokio::sync::OnceCell;

use super::*;
use crate::{
    ChunkPlan, ExpectedRevision, FollowAction, FollowChange, Follows, Ledger, Outcome, Settlement, SlicePlan,
    cluster::{
        PostgresConfig, SecretUrl,
        postgres::{PostgresFollows, PostgresLeases, PostgresLedger},
    },
};

static POSTGRES: OnceCell<Option<PostgresServer>> = OnceCell::const_new();

/// An empty database, a Redis server, and the records in the database.
struct Bed {
    postgres: Postgres,
    redis: Redis,
    follows: PostgresFollows,
    ledger: PostgresLedger,
}

/// `None` on a machine without the servers.
async fn bed() -> Option<Bed> {
    let redis = Redis::start(RedisOptions::default()).await;
    bed_with(required("the tests of timelines in Redis", redis)?).await
}

async fn bed_with(redis: Redis) -> Option<Bed> {
    let postgres = database().await?;
    Some(Bed {
        follows: PostgresFollows::new(&postgres, Duration::from_hours(168), Duration::from_hours(720)),
        ledger: PostgresLedger::new(postgres.clone()),
        postgres,
        redis,
    })
}

/// Connections to an empty database.
async fn database() -> Option<Postgres> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let server = POSTGRES
        .get_or_init(async || required("the tests of timelines in Redis", PostgresServer::start().await))
        .await
        .as_ref()?;
    let name = format!("timelines_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let url = SecretUrl::new(server.database(&name).await.unwrap());
    let postgres = Postgres::connect(&url, &PostgresConfig::default()).await.unwrap();
    postgres.migrate().await.unwrap();
    Some(postgres)
}

/// No rebuild is given up, and samples are taken by the tests.
fn config(url: &str) -> TimelinesConfig {
    TimelinesConfig {
        url: SecretUrl::new(url),
        rebuild_wait_ms: 10_000,
        active_days: 0,
        sample_interval_s: 3_600,
        ..TimelinesConfig::default()
    }
}

impl Bed {
    /// Opens timelines, as another process does.
    async fn open(&self) -> ClusterTimelines {
        self.open_with(config(&self.redis.url())).await
    }

    async fn open_with(&self, config: TimelinesConfig) -> ClusterTimelines {
        let leases = Arc::new(PostgresLeases::new(self.postgres.clone()));
        ClusterTimelines::open(&config, 30, &self.postgres, leases, "test")
            .await
            .unwrap()
    }

    async fn follow(&self, follower: u32, author: u32, follows: bool) {
        let action = if follows {
            FollowAction::Follow { notify: None }
        } else {
            FollowAction::Unfollow
        };
        let change = FollowChange {
            follower: UserKey(follower),
            author: UserKey(author),
            action,
        };
        self.follows.apply(&[change]).await.unwrap();
    }

    /// Plans a post for the followers of its author. Returns them.
    async fn plan(&self, post: u64, author: u32) -> Recipients {
        let author = UserKey(author);
        let page = self.follows.followers(author, None, None, 1_000).await.unwrap();
        let chunks = if page.followers.is_empty() {
            Vec::new()
        } else {
            vec![ChunkPlan {
                channel: Channel::Timeline,
                recipients: page.followers.clone(),
            }]
        };
        let plan = SlicePlan {
            post: PostId(post),
            author,
            slice: 0,
            version: page.version,
            chunks,
            next_after: None,
        };
        self.ledger.plan(plan).await.unwrap();
        page.followers
    }

    /// Plans a post, delivers it and records the outcome.
    async fn post(&self, timelines: &ClusterTimelines, post: u64, author: u32) -> Recipients {
        let followers = self.plan(post, author).await;
        if !followers.is_empty() {
            deliver(timelines, post, &followers).await;
            self.settle(post, &followers).await;
        }
        followers
    }

    /// Records an outcome without the suppressed recipients, and without dead ones.
    async fn settle_suppressed(
        &self,
        post: u64,
        recipients: &Recipients,
        suppressed: &[(SuppressedReason, Recipients)],
    ) {
        self.settle_mixed(post, recipients, suppressed, &Recipients::default())
            .await;
    }

    /// Records an outcome with suppressed and dead recipients in place of the recorded one.
    async fn settle_mixed(
        &self,
        post: u64,
        recipients: &Recipients,
        suppressed: &[(SuppressedReason, Recipients)],
        dead: &Recipients,
    ) {
        let (post, channel, chunk) = (PostId(post), Channel::Timeline, recipients.chunk_id());
        let recorded = self.ledger.outcome(post, channel, chunk).await.unwrap();
        let is_suppressed = |user: UserKey| suppressed.iter().any(|(_, users)| users.contains(user));
        let settlement = Settlement {
            post,
            channel,
            chunk,
            base: ExpectedRevision::Revision(recorded.map_or(0, |recorded| recorded.revision)),
            outcome: Outcome::Mixed {
                delivered: Recipients::from_sorted(
                    recipients
                        .iter()
                        .filter(|user| !is_suppressed(*user) && !dead.contains(*user)),
                ),
                suppressed: Recipients::from_sorted(recipients.iter().filter(|user| is_suppressed(*user))),
                expired: Recipients::default(),
                dead: dead.clone(),
                details: crate::OutcomeDetails {
                    suppressed: suppressed.to_vec(),
                    ..crate::OutcomeDetails::default()
                },
            },
            at: Timestamp::now(),
            keep_claim: None,
        };
        self.ledger.settle(&settlement).await.unwrap();
    }

    async fn settle(&self, post: u64, recipients: &Recipients) {
        let settlement = Settlement {
            post: PostId(post),
            channel: Channel::Timeline,
            chunk: recipients.chunk_id(),
            base: ExpectedRevision::Any,
            outcome: Outcome::Delivered {
                count: recipients.len(),
            },
            at: Timestamp::now(),
            keep_claim: None,
        };
        self.ledger.settle(&settlement).await.unwrap();
    }

    /// Waits until this process has looked for losses, and all are repaired.
    async fn wait_for_repairs(&self, timelines: &ClusterTimelines) {
        wait_until("Redis can be looked at", || async {
            monitor::look(&timelines.view, true).await.is_ok()
        })
        .await;
        wait_until("the losses are repaired", || async {
            timelines.view.state.open_losses().await.unwrap().is_empty()
                && timelines.view.monitor.open().is_empty()
        })
        .await;
    }

    async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(self.postgres.pool()).await.unwrap();
    }
}

fn recipients(users: impl IntoIterator<Item = u32>) -> Recipients {
    Recipients::from_sorted(users.into_iter().map(UserKey))
}

async fn deliver(timelines: &ClusterTimelines, post: u64, recipients: &Recipients) {
    let delivered = timelines.deliver(PostId(post), recipients.clone()).await.unwrap();
    delivered.durable.await.unwrap();
}

/// The posts that a reader sees, newest first.
async fn newest(timelines: &ClusterTimelines, user: u32) -> Vec<u64> {
    let page = timelines.newest(UserKey(user), None, usize::MAX).await.unwrap();
    assert!(!page.rebuilding, "the timeline of user {user} is being rebuilt");
    page.posts.into_iter().map(|post| post.0).collect()
}

/// What is in Redis for a user, ascending, and whether it is complete.
async fn stored(timelines: &ClusterTimelines, user: u32) -> (Vec<u64>, bool) {
    let entries = timelines.read(&[UserKey(user)]).await.unwrap().remove(0);
    (
        entries.posts.into_iter().map(|post| post.0).collect(),
        entries.complete,
    )
}

/// Waits for a condition, at most 30 s.
async fn wait_until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "waited in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
