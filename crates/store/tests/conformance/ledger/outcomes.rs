//! Outcomes: revisions, concurrent writers and counts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use herald_model::{Channel, DeliveryState, PostId, Recipients, time::Timestamp};
use herald_store::{
    DeadMessage, ErrorKind, ExpectedRevision, Ledger, MarkedDead, Outcome, OutcomeDetails, RecordedOutcome,
    SettledCounts,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{POST, counts, delivered, outcome, pending_with, plan_chunk, settle, settlement, write_plan};
use crate::{
    engine::Engine,
    sample::{plan, set},
};

pub async fn only_a_changed_outcome_gets_a_new_revision<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    let chunk = set(1..=4);
    plan_chunk(&*ledger, Channel::Push, &chunk).await;
    let settle = async |base, states: &[u8], at| {
        let settlement = settlement(Channel::Push, &chunk, base, outcome(&chunk, states), at);
        ledger.settle(&settlement).await
    };
    let revision = ExpectedRevision::Revision;
    assert_eq!(settle(revision(0), &[1, 0, 0, 0], 5).await.unwrap(), 1);
    assert_eq!(settle(revision(1), &[1, 0, 0, 0], 6).await.unwrap(), 1);
    assert_eq!(settle(revision(1), &[1, 2, 0, 0], 7).await.unwrap(), 2);
    // A worker with a stale revision.
    for base in [0, 1, 3] {
        let refused = settle(revision(base), &[1, 4, 4, 4], 8).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict, "base {base}");
    }
    let refused = settle(ExpectedRevision::Any, &[1, 1, 1, 1], 9).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let recorded = ledger
        .outcome(POST, Channel::Push, chunk.chunk_id())
        .await
        .unwrap();
    let expected = RecordedOutcome {
        revision: 2,
        outcome: outcome(&chunk, &[1, 2, 0, 0]),
    };
    assert_eq!(recorded, Some(expected));
    let whole = delivered(Channel::Push, &chunk, 10);
    assert_eq!(ledger.settle(&whole).await.unwrap(), 3);
    assert_eq!(ledger.settle(&whole).await.unwrap(), 3);
}

pub async fn one_of_several_concurrent_writers_wins<E: Engine>(engine: &mut E) {
    const WRITERS: u8 = 8;
    const ROUNDS: u64 = 25;
    let both = [engine.stores().ledger, engine.peer().await.ledger];
    let chunk = set(1..=40);
    plan_chunk(&*both[0], Channel::Push, &chunk).await;
    let writers = (0..WRITERS).map(|n| {
        let (ledger, chunk) = (both[usize::from(n) % 2].clone(), chunk.clone());
        tokio::spawn(async move {
            let mut won = 0_u64;
            for base in 0..ROUNDS {
                // Different from that of every other writer and round.
                let outcome = outcome(&chunk, &[n % 4 + 1, (base % 5) as u8, n / 4, (base / 5) as u8]);
                let base_revision = ExpectedRevision::Revision(base);
                let settlement =
                    settlement(Channel::Push, &chunk, base_revision, outcome, base.cast_signed());
                match ledger.settle(&settlement).await {
                    Ok(revision) => won += u64::from(revision == base + 1),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
                }
            }
            won
        })
    });
    let writers = futures::future::join_all(writers).await;
    let won: u64 = writers.into_iter().map(|writer| writer.unwrap()).sum();
    let recorded = both[1]
        .outcome(POST, Channel::Push, chunk.chunk_id())
        .await
        .unwrap();
    assert_eq!(recorded.unwrap().revision, won);
}

/// The recipients in a state, page by page.
async fn listed(ledger: &dyn Ledger, state: Option<DeliveryState>, page: usize) -> Vec<u32> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let listed = ledger
            .recipients(POST, Channel::Push, state, after, page)
            .await
            .unwrap();
        assert!(listed.len() <= page);
        let Some(last) = listed.last().map(|one| one.user) else {
            return all;
        };
        after = Some(last);
        all.extend(listed.iter().map(|one| one.user.0));
    }
}

async fn check(ledger: &dyn Ledger, expected: &BTreeMap<u32, u8>, page: usize) {
    let push = counts(ledger).await.push;
    assert_eq!(push.targeted, expected.len() as u64);
    let states = [
        (DeliveryState::Pending, push.pending),
        (DeliveryState::Delivered, push.delivered),
        (DeliveryState::Suppressed, push.suppressed),
        (DeliveryState::Expired, push.expired),
        (DeliveryState::Dead, push.dead),
    ];
    for (number, (state, count)) in states.into_iter().enumerate() {
        let in_state = expected
            .iter()
            .filter(|(_, state)| usize::from(**state) == number);
        let in_state: Vec<_> = in_state.map(|(user, _)| *user).collect();
        assert_eq!(count, in_state.len() as u64, "{state:?}");
        assert_eq!(listed(ledger, Some(state), page).await, in_state, "{state:?}");
    }
    assert!(listed(ledger, None, page).await.iter().eq(expected.keys()));
}

pub async fn all_counts_add_up<E: Engine>(engine: &mut E) {
    let mut random = StdRng::seed_from_u64(11);
    let users: Vec<u32> = (1..600).filter(|_| random.random_bool(0.4)).collect();
    let chunks: Vec<Recipients> = users.chunks(23).map(|chunk| set(chunk.iter().copied())).collect();
    let mut expected: BTreeMap<u32, u8> = users.iter().map(|user| (*user, 0)).collect();
    let mut outcomes = HashMap::new();
    let ledger = engine.stores().ledger;
    for (slice, chunk) in chunks.iter().enumerate() {
        let last = slice + 1 == chunks.len();
        write_plan(
            &*ledger,
            plan(POST, slice as u32, last, &[(Channel::Push, chunk)]),
        )
        .await;
    }
    // A post beside it changes nothing.
    let mut other = plan(PostId(POST.0 + 1), 0, true, &[(Channel::Push, &chunks[0])]);
    write_plan(&*ledger, other.clone()).await;
    other.post = PostId(POST.0 - 1);
    write_plan(&*ledger, other).await;
    for at in 0..30 {
        let chunk = &chunks[random.random_range(0..chunks.len())];
        let states: Vec<u8> = (0..random.random_range(1..9))
            .map(|_| random.random_range(0..5))
            .collect();
        let outcome = outcome(chunk, &states);
        expected.extend(
            chunk
                .iter()
                .map(|user| user.0)
                .zip(states.iter().copied().cycle()),
        );
        settle(&*ledger, chunk, outcome.clone(), at).await;
        outcomes.insert(chunk.chunk_id(), outcome);
        if at % 10 == 9 {
            check(&*ledger, &expected, 1 + at as usize * 3).await;
        }
    }
    drop(ledger);
    engine.reopen().await;
    let ledger = engine.stores().ledger;
    check(&*ledger, &expected, 1_000).await;
    for chunk in &chunks {
        let found = ledger
            .outcome(POST, Channel::Push, chunk.chunk_id())
            .await
            .unwrap();
        assert_eq!(
            found.map(|found| found.outcome).as_ref(),
            outcomes.get(&chunk.chunk_id())
        );
    }
    let untouched = ledger
        .outcome(PostId(POST.0 + 1), Channel::Push, chunks[0].chunk_id())
        .await;
    assert_eq!(untouched.unwrap(), None);
}

pub async fn pages_list_each_recipient_once_while_outcomes_change<E: Engine>(engine: &mut E) {
    const USERS: u32 = 600;
    const PER_CHUNK: u32 = 20;
    let chunks: Vec<_> = (0..USERS / PER_CHUNK)
        .map(|n| set((1..=PER_CHUNK).map(|user| n * PER_CHUNK + user)))
        .collect();
    let (ledger, writer) = (engine.stores().ledger, engine.peer().await.ledger);
    let planned: Vec<_> = chunks.iter().map(|chunk| (Channel::Push, chunk)).collect();
    write_plan(&*ledger, plan(POST, 0, true, &planned)).await;
    let settled = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let settled = settled.clone();
        async move {
            for states in [[0, 1, 2, 0], [0, 1, 2, 3], [4, 1, 2, 3]] {
                for chunk in &chunks {
                    settle(&*writer, chunk, outcome(chunk, &states), 5).await;
                }
            }
            settled.store(true, Ordering::SeqCst);
        }
    });
    let mut rounds = 0;
    while !settled.load(Ordering::SeqCst) || rounds == 0 {
        let all = listed(&*ledger, None, 37).await;
        assert!(all.into_iter().eq(1..=USERS));
        // Recipients leave this state and don't come back: none is listed twice.
        let pending = listed(&*ledger, Some(DeliveryState::Pending), 37).await;
        assert!(pending.is_sorted_by(|a, b| a < b), "{pending:?}");
        let counts = counts(&*ledger).await.push;
        assert_eq!(
            counts.targeted,
            counts.delivered + counts.suppressed + counts.expired + counts.pending + counts.dead
        );
        rounds += 1;
    }
    writing.await.unwrap();
    assert_eq!(counts(&*ledger).await.push.dead, u64::from(USERS) / 4);
}

pub async fn a_user_of_overlapping_chunks_is_listed_once<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    let (a, b) = (set(1..=10), set(5..=15));
    let chunks = [(Channel::Timeline, &a), (Channel::Timeline, &b)];
    write_plan(&*ledger, plan(POST, 0, true, &chunks)).await;
    ledger.settle(&delivered(Channel::Timeline, &b, 1)).await.unwrap();
    let listed = ledger
        .recipients(POST, Channel::Timeline, None, None, 100)
        .await
        .unwrap();
    assert!(listed.iter().map(|one| one.user.0).eq(1..=15));
    assert!(
        listed
            .iter()
            .all(|one| (one.user.0 < 5) == (one.state == DeliveryState::Pending))
    );
}

pub async fn the_times_of_the_first_and_last_delivery_are_kept<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    let chunk = set(1..=4);
    plan_chunk(&*ledger, Channel::Push, &chunk).await;
    for (states, at) in [
        ([0, 0, 2, 0], 5),
        ([1, 0, 2, 0], 10),
        ([1, 1, 2, 4], 20),
        ([1, 1, 2, 4], 30),
    ] {
        settle(&*ledger, &chunk, outcome(&chunk, &states), at).await;
    }
    let push = counts(&*ledger).await.push;
    assert_eq!(push.first_delivered_at, Some(Timestamp(10)));
    assert_eq!(push.last_delivered_at, Some(Timestamp(20)));
}

pub async fn mark_dead_affects_pending_recipients_only<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    let (chunk, fresh) = (set(1..=5), set(11..=13));
    let chunks = [(Channel::Push, &chunk), (Channel::Timeline, &fresh)];
    write_plan(&*ledger, plan(POST, 0, true, &chunks)).await;
    let recorded = Outcome::Mixed {
        delivered: set([1]),
        suppressed: set([2]),
        expired: set([]),
        dead: set([5]),
        details: OutcomeDetails {
            pending: vec![pending_with(3, &[9])],
            ..OutcomeDetails::default()
        },
    };
    settle(&*ledger, &chunk, recorded, 1).await;
    let mark_dead = async |channel, chunk: &Recipients| {
        let dead = DeadMessage {
            post: POST,
            channel,
            chunk: chunk.chunk_id(),
            generation: 0,
        };
        ledger.mark_dead(&dead, Timestamp(7)).await.unwrap()
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
    assert_eq!(mark_dead(Channel::Push, &chunk).await, Some(expected.clone()));
    assert_eq!(mark_dead(Channel::Push, &chunk).await, Some(expected));
    let all = mark_dead(Channel::Timeline, &fresh).await.unwrap();
    assert_eq!(
        (all.dead_recipients, all.revision, all.counts.dead),
        (fresh.clone(), 1, 3)
    );
    // No such chunk, no such post.
    assert_eq!(mark_dead(Channel::Timeline, &chunk).await, None);

    let now = counts(&*ledger).await;
    assert_eq!((now.push.pending, now.timeline.pending), (0, 0));
    // Delivered recipients stay delivered.
    ledger
        .settle(&delivered(Channel::Timeline, &fresh, 8))
        .await
        .unwrap();
    let none = mark_dead(Channel::Timeline, &fresh).await.unwrap();
    assert_eq!(
        (none.dead_recipients, none.revision, none.counts.delivered),
        (set([]), 2, 3)
    );
}
