//! Tests of retention: what is past it is removed, and nothing else.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use herald_model::{Channel, ChunkId, FollowVersion, PostId, Recipients, UserKey, time::Timestamp};
use parking_lot::Mutex;

use super::{
    dead_letters::{dead_letter, redrive},
    open, run,
};
use crate::{
    ChunkPlan, ChunkRef, Counted, DeadLetter, DeadLetterFilter, DeadLetterVersion, DeadLetters as _,
    ExpectedRevision, Leases as _, Ledger as _, Order, Outcome, Retention as _, Settlement, SlicePlan,
    Totals as _, TotalsBatch,
    cluster::{
        Config, PostgresConfig,
        postgres::{
            Postgres, PostgresDeadLetters, PostgresFollows, PostgresLeases, PostgresLedger, PostgresPosts,
            PostgresRetention, PostgresTotals,
        },
    },
};

const DAY: Duration = Duration::from_hours(24);
const NOW: Timestamp = Timestamp(1_700_000_000_000_000);

/// The last post of the first partition, and the first ones of the next.
const OLD: u64 = (1 << 18) - 1;
const BETWEEN: u64 = 1 << 18;
const NEW: u64 = (1 << 18) + 1;

fn ago(days: u32) -> Timestamp {
    NOW.minus(DAY * days)
}

fn set(user: u32) -> Recipients {
    Recipients::from_sorted([UserKey(user)])
}

async fn accept(postgres: &Postgres, post: u64, at: Timestamp) {
    sqlx::query("INSERT INTO herald.posts (id, author, accepted_at, body) VALUES ($1, 3, $2, '')")
        .bind(post.cast_signed())
        .bind(at.0)
        .execute(postgres.pool())
        .await
        .unwrap();
}

async fn plan_and_settle(ledger: &PostgresLedger, post: u64) {
    let planned = SlicePlan {
        post: PostId(post),
        author: UserKey(3),
        slice: 0,
        version: FollowVersion(1),
        chunks: vec![ChunkPlan {
            channel: Channel::Timeline,
            recipients: set(9),
        }],
        next_after: None,
    };
    ledger.plan(planned).await.unwrap();
    let settlement = Settlement {
        post: PostId(post),
        channel: Channel::Timeline,
        chunk: set(9).chunk_id(),
        base: ExpectedRevision::Any,
        outcome: Outcome::Delivered { count: 1 },
        at: NOW,
        keep_claim: None,
    };
    ledger.settle(&settlement).await.unwrap();
}

async fn names(postgres: &Postgres, sql: &'static str) -> Vec<String> {
    sqlx::query_scalar(sql).fetch_all(postgres.pool()).await.unwrap()
}

struct Fixture {
    postgres: Postgres,
    ledger: PostgresLedger,
    retention: PostgresRetention,
    oldest_shown: Arc<Mutex<Vec<u64>>>,
}

/// A ledger with a post of 40 days, one of 20 and one of 1, of which the first is in another partition.
async fn fixture() -> Option<Fixture> {
    let postgres = open().await?;
    let config = Config {
        timeline_keep_days: 10,
        ..Config::default()
    };
    let posts = PostgresPosts::new(&postgres, &PostgresConfig::default(), DAY);
    let follows = PostgresFollows::new(&postgres, DAY, DAY);
    let oldest_shown = Arc::new(Mutex::new(Vec::new()));
    let raised = Arc::clone(&oldest_shown);
    let raise = Box::new(move |post: PostId| {
        raised.lock().push(post.0);
        async { Ok(()) }.boxed()
    });
    let retention = PostgresRetention::new(&postgres, &config, Arc::new(follows), Arc::new(posts), raise);
    let ledger = PostgresLedger::new(postgres.clone());
    for (post, days) in [(OLD, 40), (BETWEEN, 20), (NEW, 1)] {
        accept(&postgres, post, ago(days)).await;
        plan_and_settle(&ledger, post).await;
        ledger
            .record_backfill(&[PostId(post)], &set(post as u32))
            .await
            .unwrap();
    }
    Some(Fixture {
        postgres,
        ledger,
        retention,
        oldest_shown,
    })
}

#[tokio::test]
async fn partitions_past_the_retention_are_dropped() {
    const TABLES: &str = "
        SELECT relname::text FROM pg_class
        WHERE relname ~ '^ledger_.*_[0-9]+$' AND relkind = 'r' ORDER BY relname";
    let Some(fixture) = fixture().await else { return };
    let Fixture {
        postgres,
        ledger,
        retention,
        oldest_shown,
    } = &fixture;
    let before = names(postgres, TABLES).await;
    assert_eq!(before.len(), 9, "{before:?}");
    retention.trim(NOW).await.unwrap();
    assert_eq!(*oldest_shown.lock(), [NEW]);
    let kept: Vec<_> = before.into_iter().filter(|name| !name.ends_with("_0")).collect();
    assert_eq!(names(postgres, TABLES).await, kept);
    let posts: Vec<u64> = ledger
        .posts(None, 10)
        .await
        .unwrap()
        .iter()
        .map(|post| post.0)
        .collect();
    assert_eq!(posts, [BETWEEN, NEW]);
    assert_eq!(ledger.audit(PostId(OLD)).await.unwrap(), None);
    assert_eq!(ledger.counts(PostId(OLD)).await.unwrap(), None);
    let between = ledger.audit(PostId(BETWEEN)).await.unwrap().unwrap();
    assert_eq!((between.chunks.len(), between.backfilled.len()), (1, 1));
    // Rebuilds of timelines need the pins and backfills of posts that are shown, the ledger those of its own posts.
    let pins = names(
        postgres,
        "SELECT post::text FROM herald.pinned_posts ORDER BY post",
    )
    .await;
    assert_eq!(pins, [NEW.to_string()]);
    let backfills = names(
        postgres,
        "SELECT recipient::text FROM herald.backfill_recipients ORDER BY 1",
    )
    .await;
    assert_eq!(backfills, [BETWEEN.to_string(), NEW.to_string()]);
    // A backfill of a post past the retention is not recorded.
    ledger.record_backfill(&[PostId(OLD)], &set(5)).await.unwrap();
    assert_eq!(ledger.audit(PostId(OLD)).await.unwrap(), None);

    // The second partition goes only when its last post does. Till then its older post is hidden.
    retention.trim(NOW.plus(DAY * 15)).await.unwrap();
    let posts: Vec<u64> = ledger
        .posts(None, 10)
        .await
        .unwrap()
        .iter()
        .map(|post| post.0)
        .collect();
    assert_eq!(posts, [NEW]);
    assert_eq!(ledger.counts(PostId(BETWEEN)).await.unwrap(), None);
    assert_eq!(names(postgres, TABLES).await, kept);
}

#[tokio::test]
async fn a_detachment_that_was_broken_off_is_finished() {
    let Some(fixture) = fixture().await else { return };
    let Fixture {
        postgres, retention, ..
    } = &fixture;
    // A transaction that reads the partition lets the detachment time out in its second half.
    let mut reader = postgres.begin().await.unwrap();
    sqlx::query("SELECT FROM herald.ledger_chunks")
        .execute(&mut *reader)
        .await
        .unwrap();
    let mut connection = postgres.pool().acquire().await.unwrap();
    sqlx::raw_sql("SET lock_timeout = 200")
        .execute(&mut *connection)
        .await
        .unwrap();
    let detach = "ALTER TABLE herald.ledger_chunks DETACH PARTITION herald.ledger_chunks_0 CONCURRENTLY";
    sqlx::raw_sql(detach).execute(&mut *connection).await.unwrap_err();
    sqlx::raw_sql("RESET lock_timeout")
        .execute(&mut *connection)
        .await
        .unwrap();
    drop(connection);
    reader.rollback().await.unwrap();
    let pending = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhdetachpending";
    assert_eq!(names(postgres, pending).await.len(), 1);

    retention.trim(NOW).await.unwrap();
    assert_eq!(names(postgres, pending).await.len(), 0);
    let left = names(
        postgres,
        "SELECT relname::text FROM pg_class WHERE relname ~ '^ledger_[a-z]+_0$'",
    )
    .await;
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn dead_letters_and_counts_are_removed_by_their_age() {
    let Some(fixture) = fixture().await else { return };
    let Fixture {
        postgres, retention, ..
    } = &fixture;
    let dead_letters = PostgresDeadLetters::new(postgres.clone());
    let leases = PostgresLeases::new(postgres.clone());
    let totals = PostgresTotals::new(postgres.clone());
    let stored = |id, days| DeadLetter {
        stored_at: ago(days),
        ..dead_letter(id)
    };
    dead_letters
        .insert(&[stored(1, 31), stored(2, 31), stored(3, 29)])
        .await
        .unwrap();
    let fence = leases.acquire("redrive", "a", DAY).await.unwrap().unwrap();
    let second = DeadLetterVersion {
        id: crate::DeadLetterId(2),
        round: 0,
    };
    let running = dead_letters.begin(&redrive(), &[second]).await.unwrap();
    dead_letters.claim(running.id, 1, 0, NOW, &fence).await.unwrap();
    let mut ended = redrive();
    ended.at = ago(366);
    dead_letters.begin(&ended, &[]).await.unwrap();

    let counted = |post| {
        let chunk = ChunkRef {
            post: PostId(post),
            channel: Channel::Push,
            chunk: ChunkId(1),
        };
        let counted = Counted {
            revision: 1,
            ..Counted::default()
        };
        (chunk, counted)
    };
    let batch = TotalsBatch {
        stream: "EVENTS".into(),
        sequences: vec![1],
        file: "a".into(),
        chunks: vec![counted(1), counted(OLD), counted(NEW)],
        ..TotalsBatch::default()
    };
    totals.intend("a", &fence).await.unwrap();
    totals.commit(&batch).await.unwrap();
    accept(postgres, 1, ago(61)).await;

    retention.trim(NOW).await.unwrap();
    let page = dead_letters
        .scan(&DeadLetterFilter::default(), Order::OldestFirst, None, 10)
        .await
        .unwrap();
    let ids: Vec<u64> = page
        .dead_letters
        .iter()
        .map(|dead_letter| dead_letter.id.0)
        .collect();
    assert_eq!(ids, [2, 3]);
    let operations = dead_letters.operations(None, 10).await.unwrap();
    assert_eq!(
        operations.iter().map(|one| one.id).collect::<Vec<_>>(),
        [running.id]
    );
    let chunks = [1, OLD, NEW].map(|post| counted(post).0);
    let revisions: Vec<u64> = totals
        .counted(&chunks)
        .await
        .unwrap()
        .iter()
        .map(|one| one.revision)
        .collect();
    assert_eq!(revisions, [0, 1, 1]);
    assert_eq!(totals.seen("EVENTS", &[1]).await.unwrap(), [true]);
    leases.renew(&fence, DAY).await.unwrap();
}

/// What another transaction renews while retention waits for its row is kept: a lease, and the counted messages of a page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_renewed_meanwhile_is_kept() {
    const AGE: &str = "
        UPDATE herald.leases SET ends_at = now() - interval '1 year', changed_at = now() - interval '1 year';
        UPDATE herald.totals_seen SET changed_at = now() - interval '1 year'";
    const RENEW_LEASE: &str =
        "UPDATE herald.leases SET ends_at = now() + interval '1 day', changed_at = now()";
    const RENEW_PAGE: &str = "UPDATE herald.totals_seen SET changed_at = now()";
    const WAITS: &str = "
        SELECT EXISTS (SELECT FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock' AND query ~ 'DELETE FROM herald')";
    let Some(fixture) = fixture().await else { return };
    let Fixture {
        postgres, retention, ..
    } = fixture;
    let retention = Arc::new(retention);
    let leases = PostgresLeases::new(postgres.clone());
    let totals = PostgresTotals::new(postgres.clone());
    for renewal in [RENEW_PAGE, RENEW_LEASE] {
        let held = leases.acquire("rare", "a", DAY).await.unwrap().unwrap();
        let batch = TotalsBatch {
            stream: "EVENTS".into(),
            sequences: vec![1],
            file: "a".into(),
            ..TotalsBatch::default()
        };
        totals.intend("a", &held).await.unwrap();
        totals.commit(&batch).await.unwrap();
        run(&postgres, AGE).await;

        let mut renewing = postgres.begin().await.unwrap();
        sqlx::query(renewal).execute(&mut *renewing).await.unwrap();
        let trimming = Arc::clone(&retention);
        let trimming = tokio::spawn(async move { trimming.trim(NOW).await });
        while !sqlx::query_scalar::<_, bool>(WAITS)
            .fetch_one(postgres.pool())
            .await
            .unwrap()
        {
            tokio::task::yield_now().await;
        }
        renewing.commit().await.unwrap();
        trimming.await.unwrap().unwrap();
        let seen = totals.seen("EVENTS", &[1]).await.unwrap();
        let renewed = leases.renew(&held, DAY).await;
        if renewal == RENEW_PAGE {
            assert_eq!(seen, [true], "the page is lost");
        } else {
            renewed.expect("the lease is not lost");
        }
    }
}
