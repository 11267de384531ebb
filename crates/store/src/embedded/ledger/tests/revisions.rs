//! Tests of revisions, concurrent writers, marking dead and reading complete plans.

use super::*;
use crate::{ChunkState, ErrorKind, PlannedSlice, SettledCounts};

#[test]
fn only_a_changed_outcome_gets_a_new_revision() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let chunk = set(1..=4);
    let settle = |base, states: &[u8], at| {
        block_on(ledger.settle(&settlement(
            Channel::Push,
            &chunk,
            base,
            outcome(&chunk, states),
            at,
        )))
    };
    assert_eq!(
        settle(ExpectedRevision::Revision(0), &[1, 0, 0, 0], 5).unwrap(),
        1
    );
    assert_eq!(
        settle(ExpectedRevision::Revision(1), &[1, 0, 0, 0], 6).unwrap(),
        1
    );
    assert_eq!(
        settle(ExpectedRevision::Revision(1), &[1, 2, 0, 0], 7).unwrap(),
        2
    );
    // A worker with a stale revision.
    for base in [0, 1, 3] {
        let refused = settle(ExpectedRevision::Revision(base), &[1, 4, 4, 4], 8).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
    }
    let refused = settle(ExpectedRevision::Any, &[1, 1, 1, 1], 9).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let recorded = block_on(ledger.outcome(POST, Channel::Push, chunk.chunk_id())).unwrap();
    let expected = RecordedOutcome {
        revision: 2,
        outcome: outcome(&chunk, &[1, 2, 0, 0]),
    };
    assert_eq!(recorded, Some(expected));
    let whole = settlement(
        Channel::Push,
        &chunk,
        ExpectedRevision::Any,
        Outcome::Delivered { count: 4 },
        10,
    );
    assert_eq!(block_on(ledger.settle(&whole)).unwrap(), 3);
    assert_eq!(block_on(ledger.settle(&whole)).unwrap(), 3);
}

#[test]
fn one_of_several_concurrent_writers_wins() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let chunk = set(1..=40);
    let won = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8_u8)
            .map(|n| {
                let (ledger, chunk) = (&ledger, &chunk);
                scope.spawn(move || {
                    let mut won = 0_u64;
                    for base in 0..50 {
                        let outcome = outcome(chunk, &[n % 4 + 1, (base % 5) as u8, n / 4]);
                        let settlement = settlement(
                            Channel::Push,
                            chunk,
                            ExpectedRevision::Revision(base),
                            outcome,
                            base.cast_signed(),
                        );
                        match block_on(ledger.settle(&settlement)) {
                            Ok(revision) => won += u64::from(revision == base + 1),
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
                        }
                    }
                    won
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum::<u64>()
    });
    let recorded = block_on(ledger.outcome(POST, Channel::Push, chunk.chunk_id())).unwrap();
    assert_eq!(recorded.unwrap().revision, won);
}

#[test]
fn mark_dead_affects_pending_recipients_only() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let (chunk, fresh) = (set(1..=5), set(11..=13));
    let chunks = [(Channel::Push, &chunk), (Channel::Timeline, &fresh)];
    write_plan(&ledger, plan(0, true, &chunks));
    let recorded = Outcome::Mixed {
        delivered: set([1]),
        suppressed: set([2]),
        expired: set([]),
        dead: set([5]),
        details: OutcomeDetails {
            pending: vec![PendingRecipient {
                user: UserKey(3),
                done: vec![DeviceId(9)],
                waiting: Vec::new(),
                failed: Vec::new(),
            }],
            ..OutcomeDetails::default()
        },
    };
    settle(&ledger, &chunk, recorded, 1);
    let mark_dead = |channel, chunk: &Recipients| {
        let dead = DeadMessage {
            post: POST,
            channel,
            chunk: chunk.chunk_id(),
            generation: 0,
        };
        block_on(ledger.mark_dead(&dead, Timestamp(7))).unwrap()
    };
    let expected = MarkedDead {
        dead_recipients: set([4, 5]),
        revision: 2,
        counts: SettledCounts {
            delivered: 2,
            suppressed: 1,
            expired: 0,
            dead: 2,
        },
    };
    assert_eq!(mark_dead(Channel::Push, &chunk), Some(expected.clone()));
    assert_eq!(mark_dead(Channel::Push, &chunk), Some(expected));
    let all = mark_dead(Channel::Timeline, &fresh).unwrap();
    assert_eq!(
        (all.dead_recipients, all.revision, all.counts.dead),
        (fresh.clone(), 1, 3)
    );
    assert_eq!(mark_dead(Channel::Timeline, &chunk), None);

    let counts = block_on(ledger.counts(POST)).unwrap().unwrap();
    assert_eq!((counts.push.pending, counts.timeline.pending), (0, 0));
    // Delivered recipients stay delivered.
    let delivered = Outcome::Delivered { count: 3 };
    block_on(ledger.settle(&settlement(
        Channel::Timeline,
        &fresh,
        ExpectedRevision::Any,
        delivered,
        8,
    )))
    .unwrap();
    let none = mark_dead(Channel::Timeline, &fresh).unwrap();
    assert_eq!(
        (none.dead_recipients, none.revision, none.counts.delivered),
        (set([]), 2, 3)
    );
}

#[test]
fn audit_reads_all_rows_of_a_post() {
    let mut store = Store::new();
    let (chunk, other) = (set(1..=5), set(6..=9));
    let recorded = RecordedOutcome {
        revision: 1,
        outcome: Outcome::Delivered { count: 4 },
    };
    {
        let ledger = Ledger::open(store.database()).unwrap();
        let chunks = [(Channel::Timeline, &chunk), (Channel::Push, &chunk)];
        write_plan(&ledger, plan(0, false, &chunks));
        write_plan(&ledger, plan(300, true, &[(Channel::Timeline, &other)]));
        let delivered = recorded.outcome.clone();
        block_on(ledger.settle(&settlement(
            Channel::Timeline,
            &other,
            ExpectedRevision::Any,
            delivered,
            8,
        )))
        .unwrap();
        block_on(ledger.record_backfill(&[PostId(3), POST], &set([70, 80]))).unwrap();
        block_on(ledger.record_backfill(&[POST], &set([70, 80]))).unwrap();
    }
    store.reopen();
    let ledger = Ledger::open(store.database()).unwrap();
    let mut plan = block_on(ledger.audit(POST)).unwrap().unwrap();
    assert_eq!(
        plan.slices,
        [(0, false), (300, true)].map(|(index, last)| PlannedSlice {
            index,
            last,
            version: Some(FollowVersion(1)),
        })
    );
    assert_eq!(plan.backfilled, [set([70, 80])]);
    plan.chunks
        .sort_by_key(|chunk| (chunk.channel, chunk.recipients.iter().next()));
    let state = |channel, recipients: &Recipients, recorded| ChunkState {
        channel,
        chunk: recipients.chunk_id(),
        recipients: recipients.clone(),
        recorded,
    };
    let expected = [
        state(Channel::Timeline, &chunk, None),
        state(Channel::Timeline, &other, Some(recorded)),
        state(Channel::Push, &chunk, None),
    ];
    assert_eq!(plan.chunks, expected);
    assert_eq!(plan.unplanned, []);
    let backfilled = block_on(ledger.audit(PostId(3))).unwrap().unwrap();
    assert!(backfilled.slices.is_empty() && backfilled.chunks.is_empty());
    assert_eq!(block_on(ledger.audit(PostId(5))).unwrap(), None);
    assert_eq!(block_on(ledger.counts(PostId(3))).unwrap(), None);

    // An outcome of a chunk that no slice has planned.
    settle(&ledger, &other, outcome(&other, &[1]), 1);
    let plan = block_on(ledger.audit(POST)).unwrap().unwrap();
    assert_eq!(plan.unplanned[0].1, other.chunk_id());
}

#[test]
fn posts_are_listed_once_until_trimmed() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    for post in [2, 5, 300, 70_000] {
        let mut one = plan(0, true, &[(Channel::Push, &set(1..=4))]);
        one.post = PostId(post);
        write_plan(&ledger, one);
    }
    let posts = |after, limit| {
        let posts = block_on(ledger.posts(after, limit)).unwrap();
        posts.into_iter().map(|post| post.0).collect::<Vec<_>>()
    };
    assert_eq!(posts(None, 3), [2, 5, 300]);
    assert_eq!(posts(Some(PostId(300)), 3), [70_000]);
    assert_eq!(posts(Some(PostId(u64::MAX)), 3), [0; 0]);
    assert!(block_on(ledger.trim(PostId(6))).unwrap() > 0);
    assert_eq!(posts(None, 9), [300, 70_000]);
    // A backfill of a trimmed post writes no row.
    block_on(ledger.record_backfill(&[PostId(5), PostId(300)], &set([9]))).unwrap();
    assert_eq!(posts(None, 9), [300, 70_000]);
}
