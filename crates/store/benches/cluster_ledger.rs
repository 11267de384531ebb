//! Throughput of the ledger, and the first page of many dead letters, of the cluster engine.
//!
//! `cargo bench -p herald-store --bench cluster_ledger -- [posts] [recipients] [callers]`. Default: 20,000 posts with a
//! timeline and a push chunk of 1,000 recipients each, 64 callers. Each caller plans a post, settles its timeline chunk,
//! claims its push chunk and settles that one, so that all four writes run at the same time, as in a mesh; before that,
//! plans and settlements alone. Starts a private PostgreSQL with fsync and a private Redis, or uses the database of
//! `BENCH_POSTGRES_URL`, which must be empty.

#![allow(clippy::expect_used)] // A failed benchmark panics.

mod servers;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use herald_model::{Channel, FollowVersion, Lane, PostId, Recipients, UserKey, time::Timestamp};
use herald_store::{
    Cause, ChunkPlan, DeadLetter, DeadLetterFilter, DeadLetterId, DeadLetterState, DeadLetters,
    ExpectedRevision, Ledger, MessageRef, Order, Outcome, OutcomeDetails, Payload, Settlement, SlicePlan,
    cluster::Cluster,
};

use servers::Servers;

const LEASE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|a| a.replace('_', "").parse::<u32>().ok());
    let posts = numbers.next().unwrap_or(20_000);
    let recipients = numbers.next().unwrap_or(1_000);
    let callers = numbers.next().unwrap_or(64) as usize;
    let servers = Servers::start().await;
    let cluster = Cluster::open(servers.config()).await.expect("open");
    let ledger = cluster.stores().ledger;
    let set = |post: u32| {
        // Every third user or so of a million, other ones for each post: some 2 bytes each.
        Recipients::from_sorted((0..recipients).map(|n| UserKey(post % 997 + n * 997)))
    };
    let plan = |post: u32| {
        let chunks = [Channel::Timeline, Channel::Push].map(|channel| ChunkPlan {
            channel,
            recipients: set(post),
        });
        SlicePlan {
            post: PostId(post.into()),
            author: UserKey(post % 10_000),
            slice: 0,
            version: FollowVersion(1),
            chunks: chunks.into(),
            next_after: None,
        }
    };
    let run = async |what: &str, chunks: u32, first: u32, work: &dyn AsyncWork| {
        let start = Instant::now();
        stream::iter(first..first + posts)
            .map(|post| work.run(post))
            .buffer_unordered(callers)
            .try_collect::<Vec<()>>()
            .await
            .expect(what);
        let elapsed = start.elapsed();
        let rate = f64::from(posts * chunks) / elapsed.as_secs_f64();
        println!(
            "{what}: {rate:.0} chunks/s ({callers} callers, {:.1} s)",
            elapsed.as_secs_f64()
        );
    };
    run("plans of two chunks", 2, 1, &|post| {
        let (ledger, plan) = (Arc::clone(&ledger), plan(post));
        Box::pin(async move { ledger.plan(plan).await.map(drop) }) as _
    })
    .await;
    run("settlements of timeline chunks", 1, 1, &|post| {
        let (ledger, chunk) = (Arc::clone(&ledger), set(post));
        Box::pin(async move { ledger.settle(&whole(post, &chunk)).await.map(drop) }) as _
    })
    .await;
    run("claims and settlements of push chunks", 1, 1, &|post| {
        let (ledger, chunk) = (Arc::clone(&ledger), set(post));
        Box::pin(async move { push(&*ledger, post, &chunk).await }) as _
    })
    .await;
    run(
        "plans, claims and settlements of two chunks",
        2,
        posts + 1,
        &|post| {
            let (ledger, plan, chunk) = (Arc::clone(&ledger), plan(post), set(post));
            Box::pin(async move {
                ledger.plan(plan).await?;
                ledger.settle(&whole(post, &chunk)).await?;
                push(&*ledger, post, &chunk).await
            }) as _
        },
    )
    .await;
    read_great_post(&*ledger, 2 * posts + 1).await;
    read_dead_letters(&*cluster.stores().dead_letters).await;
    cluster.close().await;
}

/// One piece of work for a post.
trait AsyncWork {
    fn run(&self, post: u32) -> futures::future::BoxFuture<'static, herald_store::Result<()>>;
}

impl<F> AsyncWork for F
where
    F: Fn(u32) -> futures::future::BoxFuture<'static, herald_store::Result<()>>,
{
    fn run(&self, post: u32) -> futures::future::BoxFuture<'static, herald_store::Result<()>> {
        self(post)
    }
}

fn whole(post: u32, chunk: &Recipients) -> Settlement {
    Settlement {
        post: PostId(post.into()),
        channel: Channel::Timeline,
        chunk: chunk.chunk_id(),
        base: ExpectedRevision::Any,
        outcome: Outcome::Delivered { count: chunk.len() },
        at: Timestamp(1),
        keep_claim: None,
    }
}

async fn push(ledger: &dyn Ledger, post: u32, chunk: &Recipients) -> herald_store::Result<()> {
    let key = (PostId(post.into()), Channel::Push, chunk.chunk_id());
    let revision = ledger.claim(key.0, key.1, key.2, 0, LEASE).await?;
    // One in a hundred has no device.
    let (suppressed, delivered) = chunk.iter().partition::<Vec<_>, _>(|user| user.0 % 100 == 0);
    let settlement = Settlement {
        post: key.0,
        channel: key.1,
        chunk: key.2,
        base: ExpectedRevision::Revision(revision),
        outcome: Outcome::Mixed {
            delivered: Recipients::from_sorted(delivered),
            suppressed: Recipients::from_sorted(suppressed),
            expired: Recipients::default(),
            dead: Recipients::default(),
            details: OutcomeDetails::default(),
        },
        at: Timestamp(1),
        keep_claim: None,
    };
    ledger.settle(&settlement).await.map(drop)
}

/// A post of a million recipients in chunks of 4,000.
async fn read_great_post(ledger: &dyn Ledger, post: u32) {
    let chunks = (0..250).map(|chunk| ChunkPlan {
        channel: Channel::Timeline,
        recipients: Recipients::from_sorted((4_000 * chunk..4_000 * (chunk + 1)).map(UserKey)),
    });
    let plan = SlicePlan {
        post: PostId(post.into()),
        author: UserKey(1),
        slice: 0,
        version: FollowVersion(1),
        chunks: chunks.collect(),
        next_after: None,
    };
    let id = plan.post;
    ledger.plan(plan).await.expect("plan");
    let start = Instant::now();
    ledger.counts(id).await.expect("counts");
    println!("counts of a post of 1,000,000: {:?}", start.elapsed());
    for after in [None, Some(UserKey(900_000))] {
        let start = Instant::now();
        let page = ledger
            .recipients(id, Channel::Timeline, None, after, 1_000)
            .await
            .expect("list");
        assert_eq!(page.len(), 1_000);
        println!("1,000 recipients of a post of 1,000,000: {:?}", start.elapsed());
    }
    let start = Instant::now();
    ledger.audit(id).await.expect("audit").expect("rows");
    println!("audit of a post of 1,000,000: {:?}", start.elapsed());
}

async fn read_dead_letters(dead_letters: &dyn DeadLetters) {
    const COUNT: u64 = 200_000;
    let start = Instant::now();
    for first in (1..=COUNT).step_by(1_000) {
        let some: Vec<_> = (first..first + 1_000).map(dead_letter).collect();
        dead_letters.insert(&some).await.expect("insert");
    }
    println!("{COUNT} dead letters inserted in {:?}", start.elapsed());
    let any = DeadLetterFilter::default;
    for (what, filter) in [
        ("all", any()),
        (
            "open",
            DeadLetterFilter {
                state: Some(DeadLetterState::Open),
                ..any()
            },
        ),
        (
            "of a group",
            DeadLetterFilter {
                group: Some(7),
                ..any()
            },
        ),
        (
            "of one post",
            DeadLetterFilter {
                post: Some(PostId(77)),
                ..any()
            },
        ),
        (
            "with a rare reason",
            DeadLetterFilter {
                reason: Some(": 5 of".into()),
                ..any()
            },
        ),
    ] {
        let start = Instant::now();
        let page = dead_letters
            .scan(&filter, Order::NewestFirst, None, 50)
            .await
            .expect("scan");
        println!(
            "first page, {what}: {} in {:?}",
            page.dead_letters.len(),
            start.elapsed()
        );
    }
    let start = Instant::now();
    let groups = dead_letters.groups(&any()).await.expect("groups");
    println!(
        "{} groups in {:?}",
        groups.into_largest_first().len(),
        start.elapsed()
    );
    let start = Instant::now();
    dead_letters.count(DeadLetterState::Open).await.expect("count");
    println!("count in {:?}", start.elapsed());
}

fn dead_letter(id: u64) -> DeadLetter {
    DeadLetter {
        id: DeadLetterId(id),
        origin: MessageRef {
            stream: "PUSH".into(),
            consumer: "push-normal".into(),
            sequence: id,
        },
        kind: "push".into(),
        original_sequence: id,
        subject: "push.v1.deliver.normal".into(),
        message_type: "herald.mesh.v1.PushChunk".into(),
        cause: Cause::Terminated,
        reason: format!("push failed: webhook status 503: {id} of 12 recipients"),
        group: id % 40,
        group_reason: "push failed: webhook status 503".into(),
        attempts: 20,
        published_at: Timestamp(1),
        first_failed_at: Timestamp(id.cast_signed()),
        last_failed_at: Timestamp(id.cast_signed()),
        stored_at: Timestamp(id.cast_signed()),
        post: Some(PostId(id % 1_000)),
        author: Some(UserKey(3)),
        channel: Some(Channel::Push),
        chunk: None,
        lane: Some(Lane::Normal),
        recipients: 12,
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".into(),
        payload: Payload::Kept,
        payload_bytes: 100,
        state: DeadLetterState::Open,
        round: 0,
        redrive: None,
        operations: Vec::new(),
        redrive_sequence: 0,
        updated_at: Timestamp(1),
        pushes_expire_at: None,
    }
}
