//! Throughput of writes and reads of the follow graph.
//!
//! `cargo bench -p herald-store --bench follows -- [follows] [users] [authors]`. Default: 1,000,000 follows in calls of
//! 10,000 between 1,000,000 users and 1,000 authors, then one author with 1,000,000 followers. `BENCH_DIR` sets the
//! directory of the data.

#![allow(clippy::expect_used)] // A failed benchmark panics.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use herald_model::{FollowVersion, UserId, UserKey};
use herald_store::{
    FollowAction, FollowChange, Follows,
    embedded::{Config, Embedded},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Changes in one call.
const BATCH: usize = 10_000;

/// Followers in one page, as fan-out reads them.
const PAGE: usize = 4_096;

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|a| a.replace('_', "").parse::<u32>().ok());
    let follows = numbers.next().unwrap_or(1_000_000);
    let users = numbers.next().unwrap_or(1_000_000);
    let authors = numbers.next().unwrap_or(1_000);
    let dir = match std::env::var("BENCH_DIR") {
        Ok(dir) => tempfile::tempdir_in(dir),
        Err(_) => tempfile::tempdir(),
    }
    .expect("a directory");
    let config = Config {
        data_dir: dir.path().into(),
        ..Config::default()
    };
    let store = Embedded::open(&config).expect("open");
    let dictionary = store.stores().users;
    let graph = store.stores().follows;

    let mut random = SmallRng::seed_from_u64(1);
    let mut random_follows = |authors: u32, first: u32| -> Vec<FollowChange> {
        (0..follows)
            .map(|_| {
                let notify = random.random_range(0..20) == 0;
                follow(
                    random.random_range(1..=users),
                    first + random.random_range(0..authors),
                    notify,
                )
            })
            .collect()
    };
    let unsorted = random_follows(authors, 1);
    let mut by_author = random_follows(authors, 10_000_000);
    by_author.sort_by_key(|c| (c.author, c.follower));
    let many_authors = random_follows(users, 20_000_000);
    import(&*graph, &format!("unsorted, {authors} authors"), &unsorted);
    import(
        &*graph,
        &format!("sorted by author, {authors} authors"),
        &by_author,
    );
    import(&*graph, &format!("unsorted, {users} authors"), &many_authors);
    import(&*graph, "repeated, no changes", &unsorted);

    let big = 4_000_000_000;
    let in_order: Vec<_> = (1..=1_000_000).map(|n| follow(n, big, n % 20 == 0)).collect();
    import(&*graph, "sorted, one author", &in_order);
    let pinned = block_on(graph.count(UserKey(big))).expect("count").version;

    read_pages(&*graph, authors, &mut random);
    export(&*graph, big, None, "newest");
    let (mut seconds, singles) = (Duration::ZERO, 500);
    for n in 0..singles {
        let start = Instant::now();
        block_on(graph.apply(&[follow(2_000_000 + n, big, true)])).expect("apply");
        seconds += start.elapsed();
    }
    println!(
        "single follow: {:.2} ms",
        seconds.as_secs_f64() * 1e3 / f64::from(singles)
    );
    concurrent_follows(&graph, big);
    export(&*graph, big, Some(pinned), "older version");

    let names: Vec<_> = (0..users.min(200_000))
        .map(|n| UserId::new(n.to_string()).expect("an id"))
        .collect();
    for round in ["new users", "existing users"] {
        let start = Instant::now();
        for names in names.chunks(BATCH) {
            block_on(dictionary.intern(names)).expect("intern");
        }
        report(&format!("intern, {round}"), names.len(), start.elapsed(), "users");
    }
    println!("disk: {} MiB", dir_bytes(dir.path()) >> 20);
}

fn follow(follower: u32, author: u32, notify: bool) -> FollowChange {
    FollowChange {
        follower: UserKey(follower),
        author: UserKey(author),
        action: FollowAction::Follow { notify: Some(notify) },
    }
}

fn import(graph: &dyn Follows, name: &str, changes: &[FollowChange]) {
    let (start, cpu) = (Instant::now(), process_cpu());
    for call in changes.chunks(BATCH) {
        block_on(graph.apply(call)).expect("apply");
    }
    report(
        &format!("import {name}"),
        changes.len(),
        start.elapsed(),
        "follows",
    );
    println!(
        "    {:.2} s of CPU time over all threads",
        process_cpu().saturating_sub(cpu).as_secs_f64()
    );
}

/// Reads pages of followers of random authors.
fn read_pages(graph: &dyn Follows, authors: u32, random: &mut SmallRng) {
    let (mut followers, reads) = (0, 20_000_u32);
    let (start, cpu) = (Instant::now(), thread_cpu());
    for _ in 0..reads {
        let author = UserKey(random.random_range(1..=authors));
        followers += block_on(graph.followers(author, None, None, PAGE))
            .expect("followers")
            .followers
            .len();
    }
    let each = |all: Duration| all.as_secs_f64() * 1e6 / f64::from(reads);
    println!(
        "page of {} followers: {:.1} µs, {:.1} µs of CPU time",
        followers / reads,
        each(start.elapsed()),
        each(thread_cpu().saturating_sub(cpu))
    );
}

fn export(graph: &dyn Follows, author: u32, at: Option<FollowVersion>, name: &str) {
    let start = Instant::now();
    let (mut followers, mut after) = (0, None);
    loop {
        let page = block_on(graph.followers(UserKey(author), at, after, PAGE)).expect("followers");
        followers += page.followers.len() as usize;
        after = page.last;
        if page.complete {
            break;
        }
    }
    report(
        &format!("export, {name}"),
        followers,
        start.elapsed(),
        "followers",
    );
}

/// Writes concurrent follows of one author.
fn concurrent_follows(graph: &Arc<dyn Follows>, author: u32) {
    let (threads, each) = (64_u32, 50_u32);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for n in 0..each {
                    let change = follow(3_000_000 + thread * each + n, author, false);
                    block_on(graph.apply(&[change])).expect("apply");
                }
            });
        }
    });
    report(
        "single follows, 64 at a time",
        (threads * each) as usize,
        start.elapsed(),
        "follows",
    );
}

fn report(name: &str, count: usize, took: Duration, unit: &str) {
    println!(
        "{name}: {count} {unit} in {:.2} s, {:.0}/s",
        took.as_secs_f64(),
        count as f64 / took.as_secs_f64()
    );
}

/// CPU time of this process.
fn process_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 = [11, 12]
        .iter()
        .filter_map(|at| fields.get(*at)?.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// CPU time of this thread.
fn thread_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

fn dir_bytes(dir: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => dir_bytes(&entry.path()),
            Ok(metadata) => {
                use std::os::unix::fs::MetadataExt;
                metadata.blocks() * 512
            }
            Err(_) => 0,
        })
        .sum()
}
