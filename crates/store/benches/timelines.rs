//! Throughput and CPU time of timelines: delivering, reading, merging and scanning.
//!
//! `cargo bench -p herald-store --bench timelines -- [deliveries] [users] [chunks in flight]`. Default: 20,000,000
//! deliveries in chunks of 1,000 to 1,000,000 users, with 1,000 chunks in flight. `BENCH_DIR` sets the directory of the
//! data, `FLUSH_INTERVAL_MS` the flush interval.

#![allow(clippy::expect_used)] // A failed benchmark panics.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use herald_model::{PostId, Recipients, UserKey};
use herald_store::{
    Timelines,
    embedded::{Config, Embedded},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Recipients in one chunk.
const CHUNK: u64 = 1_000;

/// Number of prepared chunks; posts use them in rotation.
const PREPARED_CHUNKS: usize = 4_000;

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|a| a.replace('_', "").parse::<u64>().ok());
    let deliveries = numbers.next().unwrap_or(20_000_000);
    let users = u32::try_from(numbers.next().unwrap_or(1_000_000)).expect("a 32-bit number of users");
    let in_flight = usize::try_from(numbers.next().unwrap_or(1_000)).expect("a number of chunks");
    let dir = match std::env::var("BENCH_DIR") {
        Ok(dir) => tempfile::tempdir_in(dir),
        Err(_) => tempfile::tempdir(),
    }
    .expect("a directory");
    let mut config = Config {
        data_dir: dir.path().into(),
        ..Config::default()
    };
    if let Ok(interval) = std::env::var("FLUSH_INTERVAL_MS") {
        config.timelines.flush_interval_ms = interval.parse().expect("milliseconds");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime
        .block_on(runtime.spawn(bench(config, deliveries, users, in_flight)))
        .expect("no panic");
}

async fn bench(config: Config, deliveries: u64, users: u32, in_flight: usize) {
    let mut random = SmallRng::seed_from_u64(1);
    let chunks: Vec<Recipients> = (0..PREPARED_CHUNKS).map(|_| chunk(&mut random, users)).collect();
    let base_mb = rss_mb("VmRSS:");
    let store = Embedded::open(&config).expect("open");
    let timelines = Arc::clone(store.timelines());

    let (start, cpu) = (Instant::now(), cpu_by_thread());
    let mut waiting = FuturesUnordered::new();
    let mut sent = 0;
    let mut slowest = Duration::ZERO;
    for post in 1..=deliveries / CHUNK {
        if waiting.len() >= in_flight {
            slowest = slowest.max(waiting.next().await.expect("a delivery in flight"));
        }
        let recipients = chunks[post as usize % PREPARED_CHUNKS].clone();
        sent += u64::from(recipients.len());
        let at = Instant::now();
        let delivered = timelines
            .deliver(PostId(post), recipients)
            .await
            .expect("deliver");
        waiting.push(async move {
            delivered.durable.await.expect("durable");
            at.elapsed()
        });
    }
    while let Some(took) = waiting.next().await {
        slowest = slowest.max(took);
    }
    let wall = start.elapsed();
    let spent = cpu_since(&cpu);
    let total_s = total(&spent);
    println!(
        "delivered        {sent} in {:.2} s: {:.2} M/s",
        wall.as_secs_f64(),
        sent as f64 / wall.as_secs_f64() / 1e6
    );
    println!(
        "cpu              {total_s:.2} s: {:.2} M/s on one core",
        sent as f64 / total_s / 1e6
    );
    for (thread, seconds) in spent {
        println!("  {thread:<15}{seconds:.2} s");
    }
    println!("deliver → durable, maximum {} ms", slowest.as_millis());
    println!(
        "memory           {} MB peak, {base_mb} MB before",
        rss_mb("VmHWM:")
    );
    println!(
        "disk             {:.2} bytes a delivery",
        disk_bytes(&config.data_dir.join("timelines")) as f64 / sent as f64
    );

    let expected = expected_entries(&chunks, deliveries / CHUNK, config.timelines.entries_max);
    read(&*timelines, &mut random, users, "before merging").await;
    scan(&*timelines, users, expected).await;
    let (start, cpu) = (Instant::now(), cpu_by_thread());
    timelines.merge_all().expect("merge");
    let spent = total(&cpu_since(&cpu));
    println!(
        "merged all       in {:.2} s, cpu {spent:.2} s",
        start.elapsed().as_secs_f64()
    );
    read(&*timelines, &mut random, users, "after merging").await;
    scan(&*timelines, users, expected).await;
    println!(
        "disk             {:.2} bytes a delivery",
        disk_bytes(&config.data_dir.join("timelines")) as f64 / sent as f64
    );
    store.close().expect("close");
}

fn chunk(random: &mut SmallRng, users: u32) -> Recipients {
    let mut keys: Vec<u32> = (0..CHUNK).map(|_| random.random_range(1..=users)).collect();
    keys.sort_unstable();
    Recipients::from_sorted(keys.into_iter().map(UserKey))
}

async fn read(timelines: &impl Timelines, random: &mut SmallRng, users: u32, when: &str) {
    const READS: u32 = 50_000;
    let (start, cpu) = (Instant::now(), cpu_by_thread());
    let mut entries = 0;
    for _ in 0..READS {
        let user = UserKey(random.random_range(1..=users));
        let page = timelines.newest(user, None, 50).await.expect("read");
        entries += page.posts.len();
    }
    println!(
        "reads            {:.0}/s {when}, {:.0}/s on one core, {:.1} entries each",
        f64::from(READS) / start.elapsed().as_secs_f64(),
        f64::from(READS) / total(&cpu_since(&cpu)),
        entries as f64 / f64::from(READS)
    );
}

/// Expected number of timeline entries after a number of posts: the newest entries of each user.
fn expected_entries(chunks: &[Recipients], posts: u64, entries_max: usize) -> u64 {
    let mut count_by_user = std::collections::HashMap::<UserKey, usize>::new();
    for (number, chunk) in chunks.iter().enumerate() {
        let uses = (1..=posts)
            .filter(|post| *post as usize % PREPARED_CHUNKS == number)
            .count();
        for user in chunk {
            *count_by_user.entry(user).or_default() += uses;
        }
    }
    count_by_user
        .values()
        .map(|count| (*count).min(entries_max) as u64)
        .sum()
}

async fn scan(timelines: &impl Timelines, users: u32, expected: u64) {
    let (start, cpu) = (Instant::now(), cpu_by_thread());
    let mut found = 0;
    let all: Vec<UserKey> = (1..=users).map(UserKey).collect();
    for users in all.chunks(10_000) {
        let page = timelines.read(users).await.expect("scan");
        found += page.iter().map(|one| one.posts.len() as u64).sum::<u64>();
    }
    println!(
        "scan             {found} entries: {:.2} M/s, {:.2} M/s on one core",
        found as f64 / start.elapsed().as_secs_f64() / 1e6,
        found as f64 / total(&cpu_since(&cpu)) / 1e6
    );
    assert_eq!(
        found, expected,
        "the number of timeline entries differs from the number of deliveries"
    );
}

fn total(threads: &[(String, f64)]) -> f64 {
    threads.iter().map(|(_, seconds)| seconds).sum()
}

fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let entry_bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(entry_bytes).sum()
}

fn rss_mb(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix(field))
        .unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1_024
}

/// CPU seconds by thread name.
fn cpu_by_thread() -> Vec<(String, f64)> {
    let mut threads = std::collections::BTreeMap::<String, f64>::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')) else {
            continue;
        };
        let ticks: u64 = rest
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|t| t.parse::<u64>().ok())
            .sum();
        *threads.entry(name.into()).or_default() += ticks as f64 / 100.0;
    }
    threads.into_iter().collect()
}

fn cpu_since(before: &[(String, f64)]) -> Vec<(String, f64)> {
    let seconds_before = |name: &str| before.iter().find(|(n, _)| n == name).map_or(0.0, |(_, s)| *s);
    cpu_by_thread()
        .into_iter()
        .map(|(name, s)| {
            let d = s - seconds_before(&name);
            (name, d)
        })
        .filter(|(_, s)| *s > 0.0)
        .collect()
}
