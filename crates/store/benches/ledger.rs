//! Throughput and CPU time of the ledger for each post.
//!
//! `cargo bench -p herald-store --bench ledger -- [posts]`. Default: 20,000 posts with 1,000 timeline recipients and 50
//! push recipients: one plan and two settlements for each post, 64 calls in flight.

#![allow(clippy::expect_used)] // A failed benchmark panics.

use std::{
    fs,
    future::Future,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use herald_model::{Channel, FollowVersion, PostId, Recipients, UserKey, time::Timestamp};
use herald_store::{
    ChunkPlan, ExpectedRevision, Outcome, OutcomeDetails, Result, Settlement, SlicePlan,
    embedded::{Config, Embedded},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Concurrent calls.
const IN_FLIGHT: usize = 64;

fn main() {
    let posts = std::env::args()
        .skip(1)
        .find_map(|a| a.parse().ok())
        .unwrap_or(20_000);
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config {
        data_dir: dir.path().into(),
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(bench(config, posts));
}

async fn bench(config: Config, posts: u64) {
    let mut random = SmallRng::seed_from_u64(1);
    let sets: Vec<(Recipients, Recipients)> = (0..200)
        .map(|_| (set(&mut random, 1_000), set(&mut random, 50)))
        .collect();
    let recipients_of = |post: u64| &sets[post as usize % sets.len()];
    let store = Embedded::open(&config).expect("open");
    let ledger = store.stores().ledger;

    measure("plan", posts, |post| {
        let (timeline, push) = recipients_of(post).clone();
        let chunks = [(Channel::Timeline, timeline), (Channel::Push, push)];
        let chunks = chunks.map(|(channel, recipients)| ChunkPlan { channel, recipients });
        let plan = SlicePlan {
            post: PostId(post),
            author: UserKey(3),
            slice: 0,
            version: FollowVersion(1),
            chunks: chunks.into(),
            next_after: None,
        };
        let ledger = &ledger;
        async move { ledger.plan(plan).await.map(drop) }
    })
    .await;
    measure("settle timeline", posts, |post| {
        let chunk = &recipients_of(post).0;
        let outcome = Outcome::Delivered { count: chunk.len() };
        let settlement = settlement(post, Channel::Timeline, chunk, ExpectedRevision::Any, outcome);
        let ledger = &ledger;
        async move { ledger.settle(&settlement).await.map(drop) }
    })
    .await;
    measure("settle push", posts, |post| {
        let chunk = &recipients_of(post).1;
        let outcome = Outcome::Mixed {
            delivered: chunk.clone(),
            suppressed: Recipients::default(),
            expired: Recipients::default(),
            dead: Recipients::default(),
            details: OutcomeDetails::default(),
        };
        let settlement = settlement(post, Channel::Push, chunk, ExpectedRevision::Revision(0), outcome);
        let ledger = &ledger;
        async move { ledger.settle(&settlement).await.map(drop) }
    })
    .await;
    measure("counts", posts, |post| {
        let ledger = &ledger;
        async move {
            ledger
                .counts(PostId(post))
                .await
                .map(|counts| assert!(counts.is_some()))
        }
    })
    .await;
    measure("audit", posts, |post| {
        let ledger = &ledger;
        async move {
            ledger
                .audit(PostId(post))
                .await
                .map(|plan| assert!(plan.is_some()))
        }
    })
    .await;
    measure("recipients, 100", posts.min(2_000), |post| {
        let ledger = &ledger;
        async move {
            let page = ledger
                .recipients(PostId(post), Channel::Timeline, None, None, 100)
                .await?;
            assert_eq!(page.len(), 100);
            Ok(())
        }
    })
    .await;
    store.close().expect("close");
}

/// Calls `call` for each post and prints the throughput and the CPU time of a call.
async fn measure<F: Future<Output = Result<()>>>(name: &str, posts: u64, call: impl Fn(u64) -> F) {
    let (start, cpu_before) = (Instant::now(), process_cpu());
    let mut calls = stream::iter(1..=posts).map(call).buffer_unordered(IN_FLIGHT);
    while let Some(outcome) = calls.next().await {
        outcome.expect(name);
    }
    let (wall, spent) = (
        start.elapsed().as_secs_f64(),
        process_cpu().saturating_sub(cpu_before).as_secs_f64(),
    );
    println!(
        "{name:<16} {:>8.0}/s, {:.1} µs of CPU time each",
        posts as f64 / wall,
        spent * 1e6 / posts as f64
    );
}

fn settlement(
    post: u64,
    channel: Channel,
    chunk: &Recipients,
    base: ExpectedRevision,
    outcome: Outcome,
) -> Settlement {
    Settlement {
        post: PostId(post),
        channel,
        chunk: chunk.chunk_id(),
        base,
        outcome,
        at: Timestamp::now(),
        keep_claim: None,
    }
}

fn set(random: &mut SmallRng, count: usize) -> Recipients {
    let mut keys: Vec<u32> = (0..count).map(|_| random.random_range(1..1_000_000)).collect();
    keys.sort_unstable();
    Recipients::from_sorted(keys.into_iter().map(UserKey))
}

/// CPU time of this process.
fn process_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|f| f.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}
