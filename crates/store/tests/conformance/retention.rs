//! Retention: what is past it is removed, and nothing else.

use std::time::Duration;

use herald_model::{Channel, ChunkId, PostId, UserKey, time::Timestamp};
use herald_store::{
    Archived, ChunkRef, ClockCheck, Counted, DeadLetter, DeadLetterFilter, DeadLetterId, DeadLetterState,
    DeadLetterVersion, NewOperation, OperationKind, OperationState, Order, SettledCounts, Stores,
    TotalsBatch,
};

use crate::{
    dead_letters::{count_is, dead_letter, ids},
    engine::Engine,
    sample::{lease, plan, post, set},
    timelines::{deliver, newest},
};

const DAY: Duration = Duration::from_hours(24);

/// Archives, plans, delivers and counts a post that was accepted so many days ago.
async fn accept(stores: &Stores, id: u64, age_days: u32, now: Timestamp) {
    let accepted = post(id, &format!("r{id}"), now.minus(DAY * age_days));
    stores
        .posts
        .archive(&[Archived::Created(accepted)])
        .await
        .unwrap();
    let chunk = set([2]);
    let chunks = [(Channel::Timeline, &chunk), (Channel::Push, &chunk)];
    stores
        .ledger
        .plan(plan(PostId(id), 0, true, &chunks))
        .await
        .unwrap();
    deliver(&*stores.timelines, id, chunk).await;
    let counted = Counted {
        revision: 1,
        counts: SettledCounts::default(),
    };
    let batch = TotalsBatch {
        stream: "EVENTS".into(),
        sequences: vec![id],
        file: format!("file {id}"),
        chunks: vec![(counted_chunk(id), counted)],
        ..TotalsBatch::default()
    };
    let owner = lease(stores, "analytics/one").await;
    stores.totals.intend(&batch.file, &owner).await.unwrap();
    stores.totals.commit(&batch).await.unwrap();
}

fn counted_chunk(post: u64) -> ChunkRef {
    ChunkRef {
        post: PostId(post),
        channel: Channel::Push,
        chunk: ChunkId(post),
    }
}

pub async fn a_clock_that_jumps_is_seen<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let now = Timestamp::now();
    let minute = Duration::from_mins(1);
    accept(&stores, 1, 29, now).await;
    accept(&stores, 2, 0, now).await;
    let steady = stores.retention.observe_clock(now).await.unwrap();
    assert_eq!(steady, ClockCheck::Steady);
    drop(stores);
    // At the next start the clock is 40 days ahead for a while.
    engine.reopen().await;
    let stores = engine.stores();
    let observe = async |at| stores.retention.observe_clock(at).await.unwrap();
    let ahead = now.plus(40 * DAY);
    assert!(matches!(observe(ahead).await, ClockCheck::Jumped { .. }));
    assert_ne!(observe(ahead.plus(minute)).await, ClockCheck::Steady);
    assert!(matches!(
        observe(now.plus(minute)).await,
        ClockCheck::Jumped { .. }
    ));
    assert!(matches!(
        observe(now.plus(2 * minute)).await,
        ClockCheck::Settling { .. }
    ));
}

pub async fn posts_of_a_gateway_whose_clock_is_behind_are_not_hidden<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let now = Timestamp::now();
    // The clock of the gateway was 40 days behind for the posts 3 and 4, and 40 days ahead for none.
    for (id, age_days) in [(1, 31), (2, 5), (3, 45), (4, 45), (5, 4)] {
        accept(&stores, id, age_days, now).await;
    }
    stores.retention.trim(now).await.unwrap();
    assert_eq!(newest(&*stores.timelines, 2, None, 10).await, [5, 4, 3, 2]);
    for id in 2..=5 {
        assert!(stores.ledger.counts(PostId(id)).await.unwrap().is_some(), "{id}");
    }
}

pub async fn what_is_past_its_retention_is_removed_and_nothing_else<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let now = Timestamp::now();
    for (id, age_days) in [(1, 61), (2, 59), (3, 31), (4, 29), (5, 0)] {
        accept(&stores, id, age_days, now).await;
    }
    let backfilled: Vec<_> = (1..=5).map(PostId).collect();
    stores
        .ledger
        .record_backfill(&backfilled, &set([9]))
        .await
        .unwrap();
    let planned = async || stores.ledger.posts(None, 10).await.unwrap();
    stores.retention.trim(now).await.unwrap();

    assert_eq!(newest(&*stores.timelines, 2, None, 10).await, [5, 4]);
    assert_eq!(planned().await, [PostId(4), PostId(5)]);
    for id in 1..=3 {
        assert_eq!(stores.ledger.counts(PostId(id)).await.unwrap(), None);
        assert_eq!(stores.ledger.audit(PostId(id)).await.unwrap(), None);
    }
    for id in 4..=5 {
        let counts = stores.ledger.counts(PostId(id)).await.unwrap().unwrap();
        assert_eq!((counts.timeline.targeted, counts.push.targeted), (1, 1));
        assert_eq!(
            stores.ledger.audit(PostId(id)).await.unwrap().unwrap().backfilled,
            [set([9])]
        );
    }
    // What is counted of a chunk stays for twice the retention of the ledger.
    let chunks: Vec<_> = (1..=5).map(counted_chunk).collect();
    let counted = stores.totals.counted(&chunks).await.unwrap();
    assert!(counted.iter().map(|one| one.revision).eq([0, 1, 1, 1, 1]));
    assert!(
        stores
            .totals
            .seen("EVENTS", &[1, 2, 3, 4, 5])
            .await
            .unwrap()
            .iter()
            .skip(1)
            .all(|seen| *seen)
    );
    // Posts themselves stay.
    let posts = stores
        .posts
        .get(&(1..=5).map(PostId).collect::<Vec<_>>())
        .await
        .unwrap();
    assert!(posts.iter().all(Option::is_some));
    // A backfill of a post that is past its retention records nothing.
    stores
        .ledger
        .record_backfill(&[PostId(3), PostId(4)], &set([10]))
        .await
        .unwrap();
    assert_eq!(planned().await, [PostId(4), PostId(5)]);

    // A second run has nothing to do; a year later nothing is left.
    stores.retention.trim(now).await.unwrap();
    assert_eq!(planned().await, [PostId(4), PostId(5)]);
    stores.retention.trim(now.plus(DAY * 366)).await.unwrap();
    assert_eq!(planned().await, []);
    assert_eq!(newest(&*stores.timelines, 2, None, 10).await, [0; 0]);
    // New posts after that are planned and shown as ever.
    accept(&stores, 6, 0, now.plus(DAY * 366)).await;
    assert_eq!(planned().await, [PostId(6)]);
    assert_eq!(newest(&*stores.timelines, 2, None, 10).await, [6]);
    assert_eq!(stores.users.last_key().await.unwrap(), None::<UserKey>);
}

pub async fn old_dead_letters_go_unless_they_are_redriving<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let dead_letters = &*stores.dead_letters;
    let now = Timestamp::now();
    // Dead letter `n` arrived 36 − n days ago.
    let aged = |id: u64| DeadLetter {
        stored_at: now.minus(DAY * (36 - id as u32)),
        ..dead_letter(id)
    };
    let all: Vec<_> = (1..=10).map(aged).collect();
    dead_letters.insert(&all).await.unwrap();
    let fence = lease(&stores, "redrive").await;
    let redrive = NewOperation {
        kind: OperationKind::Redrive,
        actor: "ops".into(),
        at: now,
        selection: bytes::Bytes::new(),
        excluded: 0,
        rate_max: 1,
        failures_max: 0,
        push_ttl: None,
        target: None,
    };
    let two = [DeadLetterVersion {
        id: DeadLetterId(2),
        round: 0,
    }];
    let redrive = dead_letters.begin(&redrive, &two).await.unwrap();
    dead_letters.claim(redrive.id, 1, 0, now, &fence).await.unwrap();
    dead_letters
        .finish(redrive.id, OperationState::Done, "", now)
        .await
        .unwrap();

    stores.retention.trim(now).await.unwrap();
    let left = ids(
        dead_letters,
        &DeadLetterFilter::default(),
        Order::OldestFirst,
        100,
    )
    .await;
    assert_eq!(left, [2, 6, 7, 8, 9, 10]);
    count_is(dead_letters, DeadLetterState::Open, 5).await;
    assert!(dead_letters.operation(redrive.id).await.unwrap().is_some());
    // The message of a dead letter that was removed makes a new one.
    let again = DeadLetter {
        stored_at: now,
        ..aged(1)
    };
    assert!(dead_letters.insert(&[again]).await.unwrap()[0].new);

    stores.retention.trim(now.plus(DAY * 366)).await.unwrap();
    assert_eq!(dead_letters.operation(redrive.id).await.unwrap(), None);
    let left = ids(
        dead_letters,
        &DeadLetterFilter::default(),
        Order::OldestFirst,
        100,
    )
    .await;
    assert_eq!(left, [2], "its redrive is pending");
}

pub async fn two_processes_can_trim_at_once<E: Engine>(engine: &mut E) {
    let (stores, peer) = (engine.stores(), engine.peer().await);
    let now = Timestamp::now();
    for (id, age_days) in [(1, 31), (2, 29)] {
        accept(&stores, id, age_days, now).await;
    }
    let (one, other) = tokio::join!(stores.retention.trim(now), peer.retention.trim(now));
    one.unwrap();
    other.unwrap();
    assert_eq!(newest(&*peer.timelines, 2, None, 10).await, [2]);
    assert_eq!(stores.ledger.posts(None, 10).await.unwrap(), [PostId(2)]);
}

pub async fn texts_of_posts_are_removed_some_time_after_the_deletion<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let now = Timestamp::now();
    let hour = Duration::from_hours(1);
    for id in 1..=3 {
        accept(&stores, id, 20, now).await;
    }
    for (id, hours) in [(1, 169), (2, 167)] {
        let deleted = Archived::Deleted {
            post: PostId(id),
            at: now.minus(hour * hours),
        };
        stores.posts.archive(&[deleted]).await.unwrap();
    }
    let erased = async || {
        let posts = stores.posts.get(&[1, 2, 3].map(PostId)).await.unwrap();
        posts
            .iter()
            .map(|post| post.as_ref().unwrap().is_erased())
            .collect::<Vec<_>>()
    };
    stores.retention.trim(now).await.unwrap();
    assert_eq!(erased().await, [true, false, false]);
    stores.retention.trim(now.plus(hour * 2)).await.unwrap();
    assert_eq!(erased().await, [true, true, false]);
    assert_eq!(
        newest(&*stores.timelines, 2, None, 10).await,
        [3, 2, 1],
        "the ids stay"
    );
}

pub async fn old_posts_are_removed_except_the_newest<E: Engine>(engine: &mut E) {
    engine.reopen_with_retention(40).await;
    let stores = engine.stores();
    let now = Timestamp::now();
    for (id, age_days) in [(10, 70), (20, 45), (30, 41), (40, 39), (50, 5)] {
        accept(&stores, id, age_days, now).await;
    }
    let deleted = |post| Archived::Deleted {
        post: PostId(post),
        at: now,
    };
    stores.posts.archive(&[15, 20].map(deleted)).await.unwrap();
    let trim = async |days: u32| {
        let trimmed = stores
            .retention
            .trim(now.plus(DAY * days + Duration::from_hours(2)))
            .await;
        trimmed.unwrap();
    };
    let all = [10, 20, 30, 40, 50].map(PostId);
    let listed = async || {
        let found = stores.posts.get(&all).await.unwrap();
        let found: Vec<_> = found.into_iter().flatten().map(|post| post.id).collect();
        let author = post(0, "", now).author;
        let mut newest = stores
            .posts
            .newest_by_author(author, PostId(1_000), 10)
            .await
            .unwrap();
        newest.reverse();
        assert_eq!(stores.posts.list(None, 10).await.unwrap(), found);
        assert_eq!(newest, found);
        assert_eq!(stores.posts.of_author(author, None, 10).await.unwrap(), found);
        found
    };
    let counted = async || {
        let chunks = all.map(|post| counted_chunk(post.0));
        let counted = stores.totals.counted(&chunks).await.unwrap();
        counted
            .into_iter()
            .map(|one| one.revision > 0)
            .collect::<Vec<_>>()
    };
    stores.retention.trim(now).await.unwrap();
    assert_eq!(listed().await, [40, 50].map(PostId));
    // Redelivered messages about removed posts change nothing.
    let again = post(10, "r10", now.minus(70 * DAY));
    stores
        .posts
        .archive(&[Archived::Created(again), deleted(20)])
        .await
        .unwrap();
    assert_eq!(listed().await, [40, 50].map(PostId));
    assert_eq!(
        stores
            .posts
            .find_by_request(post(0, "", now).author, "r10")
            .await
            .unwrap(),
        None
    );
    // What is counted of a post stays for 60 days, though the post is gone.
    trim(0).await;
    assert_eq!(counted().await, [false, true, true, true, true]);
    assert_eq!(stores.posts.last().await.unwrap(), Some(PostId(50)));
    for (moment, first) in [(100, 1..=40), (38, 41..=50), (1, 51..=51)] {
        let found = stores.posts.first_since(now.minus(DAY * moment)).await.unwrap();
        assert!(first.contains(&found.0), "{moment} days ago: {found}");
    }
    trim(20).await;
    assert_eq!(listed().await, [PostId(50)]);
    assert_eq!(counted().await, [false, false, false, true, true]);
    trim(400).await;
    assert_eq!(listed().await, [PostId(50)]);
    assert_eq!(stores.posts.last().await.unwrap(), Some(PostId(50)));
    assert_eq!(counted().await, [false; 5]);
    let later = now.plus(DAY * 401);
    stores
        .posts
        .archive(&[Archived::Created(post(60, "r60", later))])
        .await
        .unwrap();
    assert_eq!(stores.posts.list(None, 10).await.unwrap(), [50, 60].map(PostId));
    drop(stores);
    engine.reopen().await;
    let stores = engine.stores();
    stores.retention.trim(later.plus(DAY)).await.unwrap();
    assert_eq!(stores.posts.list(None, 10).await.unwrap(), [PostId(60)]);
    accept(&stores, 70, 0, later.plus(DAY)).await;
    assert_eq!(newest(&*stores.timelines, 2, None, 10).await, [70]);
}
