//! Timelines of the cluster engine: throughput of deliveries, memory of Redis, latency of reads and of a rebuild.
//!
//! `cargo bench -p herald-store --bench cluster_timelines -- [deliveries] [users] [posts in flight]`. Default: 20,000,000
//! deliveries in posts of 1,000 followers to 100,000 users, 400 posts at a time. Starts a private PostgreSQL, and a Redis
//! with an append-only file that is synced each second.

#![allow(clippy::expect_used)] // A failed benchmark panics.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use herald_local_stores::{Postgres, Redis, RedisOptions};
use herald_model::{PostId, Recipients, UserKey};
use herald_store::{
    Timelines,
    cluster::{Cluster, Config, SecretUrl, TimelinesConfig},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Followers of a post.
const FOLLOWERS: usize = 1_000;

/// Number of prepared sets of followers; posts use them in random order.
const PREPARED: usize = 2_000;

/// Posts of others between two deliveries in a row: ids have gaps.
const POSTS_BETWEEN: u64 = 10;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|a| a.replace('_', "").parse::<u64>().ok());
    let deliveries = numbers.next().unwrap_or(20_000_000);
    let users = u32::try_from(numbers.next().unwrap_or(100_000)).expect("a 32-bit number of users");
    let in_flight = usize::try_from(numbers.next().unwrap_or(400)).expect("a number of posts");
    let postgres = Postgres::start().await.expect("start PostgreSQL");
    let redis = Redis::start(RedisOptions::default()).await.expect("start Redis");
    let defaults = TimelinesConfig::default();
    let config = Config {
        url: SecretUrl::new(postgres.url()),
        timelines: TimelinesConfig {
            url: SecretUrl::new(redis.url()),
            merge_blocks: setting("MERGE_BLOCKS", defaults.merge_blocks),
            merge_bytes: setting("MERGE_BYTES", defaults.merge_bytes),
            rebuild_wait_ms: 60_000,
            ..defaults
        },
        ..Config::default()
    };
    let cluster = Cluster::open(&config).await.expect("open");
    let timelines = cluster.stores().timelines;
    let mut random = SmallRng::seed_from_u64(1);
    let followers: Vec<Recipients> = (0..PREPARED).map(|_| followers(&mut random, users)).collect();
    let posts = deliveries / FOLLOWERS as u64;
    let empty = memory(&redis).await;
    deliver(&timelines, &redis, &mut random, &followers, posts, in_flight).await;
    let entries = entries(&timelines, users).await;
    println!(
        "memory           {:.2} bytes an entry, {:.0} entries a user",
        (memory(&redis).await - empty) as f64 / entries as f64,
        entries as f64 / f64::from(users)
    );
    read(&timelines, &mut random, &followers, users, posts).await;
    rebuild(&timelines, &postgres).await;
    cluster.close().await;
}

/// A setting of the environment.
fn setting(name: &str, default: usize) -> usize {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect("a number"))
}

fn followers(random: &mut SmallRng, users: u32) -> Recipients {
    let mut keys: Vec<u32> = (0..FOLLOWERS).map(|_| random.random_range(1..=users)).collect();
    keys.sort_unstable();
    Recipients::from_sorted(keys.into_iter().map(UserKey))
}

/// Delivers a post durably and returns the time it took.
async fn deliver_post(timelines: Arc<dyn Timelines>, post: u64, recipients: Recipients) -> Duration {
    let start = Instant::now();
    let delivered = timelines
        .deliver(PostId(post * POSTS_BETWEEN), recipients)
        .await
        .expect("deliver");
    delivered.durable.await.expect("durable");
    start.elapsed()
}

async fn deliver(
    timelines: &Arc<dyn Timelines>,
    redis: &Redis,
    random: &mut SmallRng,
    followers: &[Recipients],
    posts: u64,
    in_flight: usize,
) {
    let (start, redis_s, own_s) = (Instant::now(), cpu_s(redis.pid()), cpu_s(std::process::id()));
    let mut waiting = FuturesUnordered::new();
    let mut took = Vec::new();
    let mut sent = 0;
    for post in 1..=posts {
        if waiting.len() >= in_flight {
            took.extend(waiting.next().await);
        }
        let recipients = followers[random.random_range(0..followers.len())].clone();
        sent += u64::from(recipients.len());
        waiting.push(deliver_post(Arc::clone(timelines), post, recipients));
    }
    took.extend(waiting.collect::<Vec<_>>().await);
    let wall = start.elapsed().as_secs_f64();
    println!(
        "delivered        {sent} in {wall:.1} s: {:.2} M/s",
        sent as f64 / wall / 1e6
    );
    println!(
        "cpu              this process {:.1} s, Redis {:.1} s",
        cpu_s(std::process::id()) - own_s,
        cpu_s(redis.pid()) - redis_s
    );
    println!("deliver          {}", percentiles(took));
}

async fn entries(timelines: &Arc<dyn Timelines>, users: u32) -> usize {
    let mut entries = 0;
    for first in (1..=users).step_by(1_000) {
        let keys: Vec<UserKey> = (first..first + 1_000).map(UserKey).collect();
        let read = timelines.read(&keys).await.expect("read");
        entries += read.iter().map(|entries| entries.posts.len()).sum::<usize>();
    }
    entries
}

/// 500 reads of 50 entries a second while 12 posts a second are delivered.
async fn read(
    timelines: &Arc<dyn Timelines>,
    random: &mut SmallRng,
    followers: &[Recipients],
    users: u32,
    posts: u64,
) {
    const SECONDS: u64 = 10;
    let readers: Vec<UserKey> = (0..2_000)
        .map(|_| UserKey(random.random_range(1..=users)))
        .collect();
    timelines.rebuild(&readers).await.expect("rebuild");
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    let (mut reads, mut writes) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
    for tick in 0..500 * SECONDS {
        ticks.tick().await;
        if tick % 42 == 0 {
            let recipients = followers[random.random_range(0..followers.len())].clone();
            writes.spawn(deliver_post(Arc::clone(timelines), posts + tick + 1, recipients));
        }
        let (user, timelines) = (
            readers[random.random_range(0..readers.len())],
            Arc::clone(timelines),
        );
        reads.spawn(async move {
            let start = Instant::now();
            let page = timelines.newest(user, None, 50).await.expect("newest");
            assert!(!page.rebuilding, "the timeline is complete");
            start.elapsed()
        });
    }
    println!(
        "newest           {} at 500/s",
        percentiles(reads.join_all().await)
    );
    println!(
        "deliver          {} at 12 posts/s",
        percentiles(writes.join_all().await)
    );
}

/// Rebuilds timelines of users who follow 1,000 of 20,000 authors, who have written 600,000 posts in all.
async fn rebuild(timelines: &Arc<dyn Timelines>, postgres: &Postgres) {
    let pool = sqlx::PgPool::connect(&postgres.url()).await.expect("connect");
    let records = "
        INSERT INTO herald.follow_edges (author, follower, since, until, notify)
            SELECT 1 + (a * 7 + f) % 20000, f, 1, NULL, false
            FROM generate_series(1, 1000) a, generate_series(1000001, 1000020) f;
        INSERT INTO herald.pinned_posts (author, post, version)
            SELECT 1 + (p * 7919) % 20000, p, 5 FROM generate_series(1, 600000::bigint) p;
        INSERT INTO herald.posts (id, author) VALUES (600000, 1);
        ANALYZE herald.follow_edges; ANALYZE herald.pinned_posts";
    sqlx::raw_sql(records).execute(&pool).await.expect("insert");
    let mut took = Vec::new();
    for user in (1_000_001..=1_000_020).map(UserKey) {
        let start = Instant::now();
        timelines.rebuild(&[user]).await.expect("rebuild");
        let page = timelines.newest(user, None, 1_000).await.expect("newest");
        took.push(start.elapsed());
        assert_eq!(page.posts.len(), 800, "the timeline is rebuilt");
    }
    println!("rebuild          {} of 1,000 followed authors", percentiles(took));
}

fn percentiles(mut took: Vec<Duration>) -> String {
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)].as_secs_f64() * 1e3;
    format!(
        "p50 {:.1} ms, p99 {:.1} ms, maximum {:.1} ms",
        at(50),
        at(99),
        at(100)
    )
}

/// Memory that Redis uses, bytes.
async fn memory(redis: &Redis) -> u64 {
    let info = redis.text(&["INFO", "memory"]).await.expect("INFO");
    let mut lines = info.lines();
    let used = lines.find_map(|line| line.strip_prefix("used_memory:"));
    used.and_then(|used| used.trim().parse().ok())
        .expect("used_memory")
}

/// Seconds of processor time of a process.
fn cpu_s(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let ticks = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = ticks.split_whitespace().skip(11).take(2);
    ticks.filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / 100.0
}
