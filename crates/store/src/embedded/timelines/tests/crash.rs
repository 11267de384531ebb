use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use futures::{StreamExt, stream::FuturesUnordered};

use super::*;

/// Set for the child process: the directory and the first post id, separated by a space.
const CHILD: &str = "HERALD_STORE_CRASH_CHILD";

const USERS: u32 = 20_000;

fn config() -> Config {
    Config {
        flush_interval_ms: 5,
        // Small and large runs, and continuous merging.
        small_run_pairs_max: 3_000,
        merge_blocks_min: 0,
        merge_busy_percent: 100,
        ..Config::default()
    }
}

/// The recipients of a post: 79 to all users.
fn recipients_of(post: u64) -> Recipients {
    let step = 1 + (post.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u32;
    recipients((1..USERS).step_by(step as usize))
}

/// A store that is killed repeatedly while it writes keeps all durable deliveries.
#[test]
fn durable_deliveries_survive_kill_9() {
    if let Ok(task) = std::env::var(CHILD) {
        return child(&task);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut durable = Vec::new();
    for round in 0_u64..6 {
        let first = round * 1_000_000 + 1;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "embedded::timelines::tests::crash::durable_deliveries_survive_kill_9",
                "--exact",
                "--nocapture",
            ])
            .env(CHILD, format!("{} {first}", dir.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Each round is killed after a different number of posts.
        let enough = 40 + 37 * round as usize;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let posts = lines
            .map_while(std::result::Result::ok)
            .filter_map(|line| line.strip_prefix("durable ")?.parse().ok());
        durable.extend(posts.take(enough).collect::<Vec<u64>>());
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "the child was not killed");
        assert!(
            durable.iter().filter(|post| **post >= first).count() == enough,
            "the child ended before it was killed"
        );

        // No merges, which could hide an error.
        let quiet = Config {
            merge_blocks_min: u32::MAX,
            entries_max: usize::MAX,
            ..config()
        };
        let timelines = open(dir.path(), &quiet);
        let mut found = std::collections::HashMap::<u64, u32>::new();
        let users: Vec<UserKey> = (0..USERS).map(UserKey).collect();
        for timeline in timelines.shared.read(&users).unwrap() {
            for post in &timeline.posts {
                *found.entry(post.0).or_default() += 1;
            }
        }
        for post in &durable {
            assert_eq!(
                found.get(post),
                Some(&recipients_of(*post).len()),
                "post {post} of round {round}"
            );
        }
    }
}

fn child(task: &str) {
    let (dir, first) = task.rsplit_once(' ').unwrap();
    let timelines = open(
        Path::new(dir),
        &Config {
            entries_max: usize::MAX,
            ..config()
        },
    );
    block_on(async {
        let mut waiting = FuturesUnordered::new();
        for post in first.parse::<u64>().unwrap().. {
            let delivered = timelines
                .deliver(PostId(post), recipients_of(post))
                .await
                .unwrap();
            waiting.push(async move {
                delivered.durable.await.unwrap();
                post
            });
            if waiting.len() >= 16 {
                let post = waiting.next().await.unwrap();
                let mut out = std::io::stdout().lock();
                // The parent may have closed the pipe already; it kills this process next.
                let _ = writeln!(out, "durable {post}").and_then(|()| out.flush());
            }
        }
    });
}
