//! How long the move of an embedded store to the cluster engine takes, part by part.
//!
//! `cargo bench -p herald-store --bench migrate -- [follows] [posts]`. Default: 1,000,000 follows, some 1,000 an author,
//! and 10,000 posts that are delivered to all followers of their authors. Starts a private PostgreSQL with fsync and a
//! private Redis, or uses the database of `BENCH_POSTGRES_URL`, which must be empty.

#![allow(clippy::expect_used)] // A failed benchmark panics.

mod servers;

use std::{collections::BTreeSet, sync::Mutex, time::Duration, time::Instant};

use herald_model::{Channel, Lane, Post, PostId, PushContent, UserId, UserKey, time::Timestamp};
use herald_store::{
    Archived, ChunkPlan, ExpectedRevision, FollowAction, FollowChange, Outcome, Settlement, SlicePlan,
    Stores,
    embedded::{self, Embedded},
    migrate::{self, Progress},
};

use servers::Servers;

/// Followers of an author, before those are left out who come twice.
const FOLLOWERS: u32 = 1_000;

/// Users that are created in one call.
const USERS_BATCH: u32 = 20_000;

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|a| a.replace('_', "").parse::<u32>().ok());
    let follows = numbers.next().unwrap_or(1_000_000);
    let posts = numbers.next().unwrap_or(10_000);
    let servers = Servers::start().await;
    let dir = tempfile::tempdir().expect("temporary directory");
    let from = embedded::Config {
        data_dir: dir.path().into(),
        disk_free_mb_min: 0,
        ..embedded::Config::default()
    };
    let store = Embedded::open(&from).expect("open the embedded store");
    fill(&store.stores(), follows, posts).await;
    store.close().expect("close the embedded store");
    drop(store);

    let starts = Mutex::new(Vec::new());
    let began = Instant::now();
    let report = |progress: Progress| {
        let mut starts = starts.lock().expect("lock");
        let now = (progress.stage, progress.part);
        if starts.last().is_none_or(|(last, _)| *last != now) {
            starts.push((now, began.elapsed()));
        }
    };
    let moved = migrate::run(&from, servers.config(), migrate::BATCH_ROWS, &report).await;
    let (moved, took) = (moved.expect("move"), began.elapsed());
    let rows: u64 = moved.parts.iter().map(|part| part.rows).sum();
    println!(
        "{rows} rows moved, {} rows of PostgreSQL compared, in {:.1} s: {:.0} rows/s",
        moved.rows_compared,
        took.as_secs_f64(),
        rows as f64 / took.as_secs_f64()
    );
    for part in &moved.parts {
        println!("{:>12} {}", part.rows, part.name);
    }
    println!("each part began after");
    for ((stage, part), at) in starts.into_inner().expect("lock") {
        println!("{at:>12.1?} {stage:?} {part}");
    }
}

async fn fill(stores: &Stores, follows: u32, posts: u32) {
    let (authors, users) = ((follows / FOLLOWERS).max(1), (follows / 20).max(1));
    for first in (1..=users).step_by(USERS_BATCH as usize) {
        let ids: Vec<_> = (first..=users.min(first + USERS_BATCH - 1)).map(id_of).collect();
        stores.users.intern(&ids).await.expect("create users");
    }
    for author in 1..=authors {
        let followers: BTreeSet<u32> = (0..FOLLOWERS)
            .map(|n| (author * 7_919 + n * 49) % users + 1)
            .collect();
        let changes: Vec<_> = followers
            .into_iter()
            .map(|follower| FollowChange {
                follower: UserKey(follower),
                author: UserKey(author),
                action: FollowAction::Follow { notify: Some(true) },
            })
            .collect();
        stores.follows.apply(&changes).await.expect("follow");
    }
    for id in 1..=posts {
        publish(stores, id, id % authors + 1).await;
    }
}

fn id_of(user: u32) -> UserId {
    UserId::new(format!("user-{user}")).expect("user id")
}

/// Archives a post, plans it for all followers on both channels, and delivers its timeline chunk.
async fn publish(stores: &Stores, id: u32, author: u32) {
    let post = PostId(id.into());
    let created = Post {
        id: post,
        author: UserKey(author),
        author_id: id_of(author),
        request_id: format!("request {id}"),
        text: format!("the text of {id}"),
        links: vec!["https://a".into()],
        media_urls: vec!["https://b".into()],
        lane: Lane::Normal,
        accepted_at: Timestamp::now(),
        push_ttl: Duration::from_hours(1),
        push: PushContent::default(),
        deleted_at: None,
    };
    let created = [Archived::Created(created)];
    stores.posts.archive(&created).await.expect("archive");
    let page = stores.follows.followers(UserKey(author), None, None, 100_000);
    let page = page.await.expect("read followers");
    let chunks = [
        (Channel::Timeline, &page.followers),
        (Channel::Push, &page.notify),
    ];
    let plan = SlicePlan {
        post,
        author: UserKey(author),
        slice: 0,
        version: page.version,
        chunks: chunks
            .into_iter()
            .map(|(channel, recipients)| ChunkPlan {
                channel,
                recipients: recipients.clone(),
            })
            .collect(),
        next_after: None,
    };
    stores.ledger.plan(plan).await.expect("plan");
    let settlement = Settlement {
        post,
        channel: Channel::Timeline,
        chunk: page.followers.chunk_id(),
        base: ExpectedRevision::Revision(0),
        outcome: Outcome::Delivered {
            count: page.followers.len(),
        },
        at: Timestamp::now(),
        keep_claim: None,
    };
    let delivered = stores.timelines.deliver(post, page.followers).await;
    delivered.expect("deliver").durable.await.expect("durable");
    stores.ledger.settle(&settlement).await.expect("settle");
}
