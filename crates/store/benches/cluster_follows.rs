//! Throughput of the follow graph of the cluster engine.
//!
//! `cargo bench -p herald-store --bench cluster_follows -- [follows] [users]`. Default: 10,000,000 follows between
//! 1,000,000 users, unsorted, in calls of 10,000, four at a time, as `herald import` makes them. Authors are skewed: half
//! of the follows are of the 1,000 greatest. Then one author with 1,000,000 followers. Starts a private PostgreSQL with
//! fsync, or uses the database of `BENCH_POSTGRES_URL`, which must be empty.

#![allow(clippy::expect_used)] // A failed benchmark panics.

mod servers;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use herald_model::{FollowVersion, UserKey};
use herald_store::{FollowAction, FollowChange, Follows, cluster::Cluster};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use servers::Servers;

/// Changes in one call.
const BATCH: usize = 10_000;

/// Calls at a time.
const CALLS: usize = 4;

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|a| a.replace('_', "").parse::<u32>().ok());
    let follows = numbers.next().unwrap_or(10_000_000);
    let users = numbers.next().unwrap_or(1_000_000);
    let servers = Servers::start().await;
    let cluster = Cluster::open(servers.config()).await.expect("open");
    let graph = cluster.stores().follows;

    let mut random = SmallRng::seed_from_u64(1);
    let unsorted: Vec<_> = (0..follows)
        .map(|_| {
            let notify = random.random_range(0..20) == 0;
            let author = f64::from(users).powf(random.random_range(0.0..1.0)) as u32;
            follow(random.random_range(1..=users), author.max(1), notify)
        })
        .collect();
    import(&graph, "unsorted, skewed authors", &unsorted).await;
    let repeated = &unsorted[..unsorted.len().min(1_000_000)];
    import(&graph, "repeated, no changes", repeated).await;

    let big = 4_000_000_000;
    let in_order: Vec<_> = (1..=1_000_000).map(|n| follow(n, big, n % 20 == 0)).collect();
    import(&graph, "sorted, one author", &in_order).await;
    let pinned = graph.count(UserKey(big)).await.expect("count").version;
    for page in [4_096, 65_536] {
        read(&graph, big, None, page, "newest").await;
    }
    let unfollows: Vec<_> = (1..=100_000)
        .map(|n| FollowChange {
            action: FollowAction::Unfollow,
            ..follow(n * 10, big, false)
        })
        .collect();
    import(&graph, "unfollows of one author", &unfollows).await;
    read(&graph, big, Some(pinned), 65_536, "pinned, 100,000 unfollows ago").await;
    cluster.close().await;
}

fn follow(follower: u32, author: u32, notify: bool) -> FollowChange {
    FollowChange {
        follower: UserKey(follower),
        author: UserKey(author),
        action: FollowAction::Follow { notify: Some(notify) },
    }
}

async fn import(graph: &Arc<dyn Follows>, what: &str, changes: &[FollowChange]) {
    let began = Instant::now();
    let changed: usize = stream::iter(changes.chunks(BATCH))
        .map(|batch| graph.apply(batch))
        .buffer_unordered(CALLS)
        .map_ok(|effects| effects.iter().filter(|effect| effect.changed).count())
        .try_fold(0, |sum, changed| async move { Ok(sum + changed) })
        .await
        .expect("apply");
    let took = began.elapsed();
    println!(
        "{what}: {} changes in {:.1} s: {:.0}/s ({changed} changed)",
        changes.len(),
        took.as_secs_f64(),
        rate(changes.len(), took)
    );
}

async fn read(graph: &Arc<dyn Follows>, author: u32, at: Option<FollowVersion>, limit: usize, what: &str) {
    let began = Instant::now();
    let mut after = None;
    let mut followers = 0;
    loop {
        let page = graph
            .followers(UserKey(author), at, after, limit)
            .await
            .expect("read");
        followers += page.followers.len() as usize;
        after = page.last;
        if page.complete {
            break;
        }
    }
    let took = began.elapsed();
    println!(
        "{what}, pages of {limit}: {followers} followers in {:.0} ms: {:.0}/s",
        took.as_secs_f64() * 1e3,
        rate(followers, took)
    );
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}
