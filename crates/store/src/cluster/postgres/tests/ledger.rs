//! Tests of concurrent writers of the ledger.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use herald_model::{Channel, FollowVersion, PostId, Recipients, UserKey, time::Timestamp};

use super::{connect, database, run};
use crate::{
    ChunkPlan, DeadMessage, ErrorKind, ExpectedRevision, Ledger as _, Outcome, OutcomeDetails, Settlement,
    SlicePlan,
    cluster::postgres::{Postgres, PostgresLedger},
};

const POST: PostId = PostId(7);
const LONG: Duration = Duration::from_mins(10);

fn set(users: impl IntoIterator<Item = u32>) -> Recipients {
    let users: BTreeSet<u32> = users.into_iter().collect();
    Recipients::from_sorted(users.into_iter().map(UserKey))
}

fn plan(post: PostId, version: u64, chunks: &[(Channel, Recipients)]) -> SlicePlan {
    let chunks = chunks.iter().map(|(channel, recipients)| ChunkPlan {
        channel: *channel,
        recipients: recipients.clone(),
    });
    SlicePlan {
        post,
        author: UserKey(3),
        slice: 0,
        version: FollowVersion(version),
        chunks: chunks.collect(),
        next_after: None,
    }
}

fn delivered_to(users: impl IntoIterator<Item = u32>) -> Outcome {
    Outcome::Mixed {
        delivered: set(users),
        suppressed: set([]),
        expired: set([]),
        dead: set([]),
        details: OutcomeDetails::default(),
    }
}

fn settlement(chunk: &Recipients, base: ExpectedRevision, outcome: Outcome) -> Settlement {
    Settlement {
        post: POST,
        channel: Channel::Push,
        chunk: chunk.chunk_id(),
        base,
        outcome,
        at: Timestamp(5),
        keep_claim: None,
    }
}

/// The ledgers of two processes on one database.
async fn two_processes() -> Option<[Arc<PostgresLedger>; 2]> {
    let url = database().await?;
    let first = connect(&url).await;
    first.migrate().await.unwrap();
    let second = connect(&url).await;
    Some([first, second].map(|postgres| Arc::new(PostgresLedger::new(postgres))))
}

async fn one_process() -> Option<(Postgres, PostgresLedger)> {
    let postgres = super::open().await?;
    Some((postgres.clone(), PostgresLedger::new(postgres)))
}

/// Each writer adds its users to the outcome that it has read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_settlements_lose_no_outcome() {
    let Some(ledgers) = two_processes().await else {
        return;
    };
    let chunk = set(0..80);
    let planned = plan(POST, 1, &[(Channel::Push, chunk.clone())]);
    ledgers[0].plan(planned).await.unwrap();
    let writers = (0..8_u32).map(|writer| {
        let (ledger, chunk) = (Arc::clone(&ledgers[writer as usize % 2]), chunk.clone());
        tokio::spawn(async move {
            let mut conflicts = 0;
            for user in (0..10).map(|n| 8 * n + writer) {
                loop {
                    let recorded = ledger
                        .outcome(POST, Channel::Push, chunk.chunk_id())
                        .await
                        .unwrap();
                    let (revision, users) = match recorded {
                        None => (0, BTreeSet::from([user])),
                        Some(recorded) => {
                            let Outcome::Mixed { delivered, .. } = recorded.outcome else {
                                panic!("the outcome is not mixed")
                            };
                            let users = delivered.iter().map(|user| user.0).chain([user]);
                            (recorded.revision, users.collect())
                        }
                    };
                    let base = ExpectedRevision::Revision(revision);
                    match ledger
                        .settle(&settlement(&chunk, base, delivered_to(users)))
                        .await
                    {
                        Ok(settled) => {
                            assert_eq!(settled, revision + 1);
                            break;
                        }
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
                    }
                    conflicts += 1;
                }
            }
            conflicts
        })
    });
    let mut conflicts = 0;
    for writer in join_all(writers).await {
        conflicts += writer.unwrap();
    }
    assert!(conflicts > 0, "the writers did not run at the same time");
    let recorded = ledgers[1]
        .outcome(POST, Channel::Push, chunk.chunk_id())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((recorded.revision, recorded.outcome), (80, delivered_to(0..80)));
    let counts = ledgers[1].counts(POST).await.unwrap().unwrap().push;
    assert_eq!((counts.targeted, counts.delivered, counts.pending), (80, 80, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_attempts_at_a_slice_get_the_plan_of_one_of_them() {
    let Some(ledgers) = two_processes().await else {
        return;
    };
    let attempts = (1..=16_u32).map(|n| {
        let ledger = Arc::clone(&ledgers[n as usize % 2]);
        let chunks = [(Channel::Timeline, set(1..=n + 1)), (Channel::Push, set([n]))];
        tokio::spawn(async move { ledger.plan(plan(POST, n.into(), &chunks)).await.unwrap() })
    });
    let plans: Vec<SlicePlan> = join_all(attempts).await.into_iter().map(Result::unwrap).collect();
    assert!(plans.iter().all(|plan| *plan == plans[0]), "{plans:?}");
    let audited = ledgers[0].audit(POST).await.unwrap().unwrap();
    assert_eq!(audited.slices.len(), 1);
    assert_eq!(audited.slices[0].version, Some(plans[0].version));
    let chunks: BTreeSet<_> = audited
        .chunks
        .iter()
        .map(|chunk| (chunk.channel, chunk.chunk))
        .collect();
    let planned = plans[0].chunks.iter();
    assert_eq!(
        chunks,
        planned
            .map(|chunk| (chunk.channel, chunk.recipients.chunk_id()))
            .collect()
    );
}

#[tokio::test]
async fn the_first_plan_pins_the_version_of_its_post() {
    let Some((postgres, ledger)) = one_process().await else {
        return;
    };
    let first = plan(POST, 4, &[(Channel::Timeline, set(1..=9))]);
    for planned in [
        // Of a post whose first slice an older Herald planned without a pin.
        SlicePlan {
            slice: 1,
            ..first.clone()
        },
        SlicePlan {
            version: FollowVersion(8),
            ..first
        },
    ] {
        ledger.plan(planned).await.unwrap();
    }
    let pins: Vec<(i64, i64, i64)> = sqlx::query_as("SELECT author, post, version FROM herald.pinned_posts")
        .fetch_all(postgres.pool())
        .await
        .unwrap();
    assert_eq!(pins, [(3, 7, 4)]);
}

/// A message and its redelivery can be settled in one batch.
#[tokio::test]
async fn settlements_of_one_chunk_at_once_are_applied_one_after_the_other() {
    let Some((_, ledger)) = one_process().await else {
        return;
    };
    let chunk = set(1..=9);
    let whole = settlement(&chunk, ExpectedRevision::Any, Outcome::Delivered { count: 9 });
    let settled = join_all((0..20).map(|_| ledger.settle(&whole))).await;
    assert!(settled.into_iter().all(|revision| revision.unwrap() == 1));
    let others: Vec<_> = (0..20)
        .map(|n| settlement(&chunk, ExpectedRevision::Revision(1), delivered_to([n])))
        .collect();
    let settled = join_all(others.iter().map(|one| ledger.settle(one))).await;
    let won: Vec<_> = settled.iter().filter_map(|one| one.as_ref().ok()).collect();
    assert_eq!(won, [&2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_message_and_a_settlement_leave_one_outcome_of_both() {
    let Some(ledgers) = two_processes().await else {
        return;
    };
    for round in 0..20 {
        let chunk = set(round..round + 9);
        let planned = plan(
            PostId(100 + u64::from(round)),
            1,
            &[(Channel::Push, chunk.clone())],
        );
        let post = planned.post;
        ledgers[0].plan(planned).await.unwrap();
        let dead = DeadMessage {
            post,
            channel: Channel::Push,
            chunk: chunk.chunk_id(),
            generation: 0,
        };
        let settled = Settlement {
            post,
            ..settlement(&chunk, ExpectedRevision::Revision(0), delivered_to([round]))
        };
        let (marked, settled) = tokio::join!(
            ledgers[0].mark_dead(&dead, Timestamp(9)),
            ledgers[1].settle(&settled)
        );
        let marked = marked.unwrap().unwrap();
        let (dead, revision) = match settled {
            Ok(1) => (8, 2),
            Err(error) if error.kind() == ErrorKind::Conflict => (9, 1),
            other => panic!("{other:?}"),
        };
        assert_eq!((marked.dead_recipients.len(), marked.revision), (dead, revision));
        let counts = ledgers[1].counts(post).await.unwrap().unwrap().push;
        assert_eq!(
            (counts.dead, counts.delivered),
            (dead.into(), u64::from(9 - dead))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_processes_make_each_partition_once() {
    const PARTITIONS: &str = "
        SELECT c.relname::text, count(*) FROM pg_inherits JOIN pg_class c ON c.oid = inhparent
        WHERE c.relname LIKE 'ledger%' AND c.relkind = 'p' GROUP BY 1 ORDER BY 1";
    let Some(url) = database().await else { return };
    let first = connect(&url).await;
    first.migrate().await.unwrap();
    let mut ledgers = Vec::new();
    for _ in 0..6 {
        ledgers.push(PostgresLedger::new(connect(&url).await));
    }
    let posts = [1, (1 << 18) - 1, 1 << 18, 5 << 18];
    let plans = ledgers.iter().flat_map(|ledger| {
        posts.map(|post| ledger.plan(plan(PostId(post), 1, &[(Channel::Push, set(1..=9))])))
    });
    for planned in join_all(plans).await {
        planned.unwrap();
    }
    let partitions: Vec<(String, i64)> = sqlx::query_as(PARTITIONS).fetch_all(first.pool()).await.unwrap();
    // Those of the posts, 0, 1 and 5, and the next ones.
    let expected = ["chunks", "outcomes", "slices"].map(|name| (format!("ledger_{name}"), 5));
    assert_eq!(partitions, expected);
    let listed: Vec<_> = ledgers[0]
        .posts(None, 10)
        .await
        .unwrap()
        .iter()
        .map(|post| post.0)
        .collect();
    assert_eq!(listed, posts);
}

#[tokio::test]
async fn a_partition_that_was_dropped_is_made_again() {
    let Some((postgres, ledger)) = one_process().await else {
        return;
    };
    let chunk = set(1..=9);
    let planned = plan(POST, 1, &[(Channel::Push, chunk.clone())]);
    ledger.plan(planned.clone()).await.unwrap();
    // One is dropped and the others are only detached, as after a retention that was broken off.
    run(
        &postgres,
        "DROP TABLE herald.ledger_slices_0;
        ALTER TABLE herald.ledger_chunks DETACH PARTITION herald.ledger_chunks_0;
        ALTER TABLE herald.ledger_outcomes DETACH PARTITION herald.ledger_outcomes_0",
    )
    .await;
    assert_eq!(ledger.audit(POST).await.unwrap(), None);
    let base = ExpectedRevision::Revision(0);
    ledger
        .settle(&settlement(&chunk, base, delivered_to([1])))
        .await
        .unwrap();
    assert_eq!(ledger.plan(planned.clone()).await.unwrap(), planned);
    let audited = ledger.audit(POST).await.unwrap().unwrap();
    assert_eq!((audited.slices.len(), audited.chunks.len()), (1, 1));
    assert_eq!(audited.chunks[0].recorded.as_ref().unwrap().revision, 1);
}

/// A message with such an id is malformed. It makes no partition, and fails nothing that shares its batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_above_all_partitions_is_refused() {
    const TABLES: &str = "SELECT count(*) FROM pg_class WHERE relname ~ '^ledger_.*[0-9]' AND relkind = 'r'";
    let Some(url) = database().await else { return };
    let postgres = connect(&url).await;
    postgres.migrate().await.unwrap();
    let ledger = PostgresLedger::new(postgres.clone());
    let chunk = set([1, 2]);
    for id in [u64::MAX, i64::MAX as u64, 1 << 62] {
        let post = PostId(id);
        let refused = Settlement {
            post,
            ..settlement(&chunk, ExpectedRevision::Any, Outcome::Delivered { count: 2 })
        };
        let dead = DeadMessage {
            post,
            channel: Channel::Push,
            chunk: chunk.chunk_id(),
            generation: 0,
        };
        let (planned, settled, claimed, dead, good) = tokio::join!(
            ledger.plan(plan(post, 1, &[(Channel::Push, chunk.clone())])),
            ledger.settle(&refused),
            ledger.claim(post, Channel::Push, chunk.chunk_id(), 0, LONG),
            ledger.mark_dead(&dead, Timestamp(5)),
            ledger.plan(plan(POST, 1, &[(Channel::Push, chunk.clone())])),
        );
        good.unwrap();
        let kinds = [
            planned.unwrap_err().kind(),
            settled.unwrap_err().kind(),
            claimed.unwrap_err().kind(),
            dead.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [ErrorKind::LimitExceeded; 4], "{id}");
    }
    let tables: i64 = sqlx::query_scalar(TABLES)
        .fetch_one(postgres.pool())
        .await
        .unwrap();
    assert_eq!(tables, 6, "those of the first two partitions");
}
