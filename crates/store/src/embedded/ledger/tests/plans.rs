//! Tests of plans: the first one of a slice is recorded, and every later call returns it.

use super::*;

/// The plan of an attempt at slice 0 that reads other followers, at another version, with another configuration.
fn other_attempt() -> SlicePlan {
    SlicePlan {
        version: FollowVersion(9),
        ..plan(0, true, &[(Channel::Timeline, &set(5..=40))])
    }
}

#[test]
fn planning_a_slice_again_returns_the_recorded_plan() {
    let mut store = Store::new();
    let (timeline, push) = (set(1..=10), [set(1..=4), set(5..=10)]);
    let first = plan(
        0,
        false,
        &[
            (Channel::Timeline, &timeline),
            (Channel::Push, &push[0]),
            (Channel::Push, &push[1]),
        ],
    );
    {
        let ledger = Ledger::open(store.database()).unwrap();
        assert_eq!(write_plan(&ledger, first.clone()), first);
        let next = plan(1, true, &[(Channel::Timeline, &set(11..=30))]);
        assert_eq!(write_plan(&ledger, next.clone()), next);
        let before = block_on(ledger.counts(POST)).unwrap();
        assert_eq!(write_plan(&ledger, other_attempt()), first);
        assert_eq!(block_on(ledger.counts(POST)).unwrap(), before);
    }
    store.reopen();
    let ledger = Ledger::open(store.database()).unwrap();
    assert_eq!(write_plan(&ledger, other_attempt()), first);
    let audited = block_on(ledger.audit(POST)).unwrap().unwrap();
    let versions: Vec<_> = audited.slices.iter().map(|slice| slice.version).collect();
    assert_eq!(versions, [Some(FollowVersion(1)); 2]);
}

#[test]
fn an_empty_plan_is_recorded_too() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let empty = plan(0, true, &[]);
    assert_eq!(write_plan(&ledger, empty.clone()), empty);
    assert_eq!(write_plan(&ledger, other_attempt()), empty);
}

#[test]
fn of_concurrent_attempts_one_plans_and_all_return_its_plan() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let attempts = |n: u32| SlicePlan {
        version: FollowVersion(n.into()),
        ..plan(0, true, &[(Channel::Timeline, &set(1..=n + 1))])
    };
    let plans: Vec<SlicePlan> = std::thread::scope(|scope| {
        let ledger = &ledger;
        let threads: Vec<_> = (1..=8)
            .map(|n| scope.spawn(move || write_plan(ledger, attempts(n))))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(plans.iter().all(|plan| *plan == plans[0]), "{plans:?}");
    let counts = block_on(ledger.counts(POST)).unwrap().unwrap();
    assert_eq!(
        counts.timeline.targeted,
        u64::from(plans[0].chunks[0].recipients.len())
    );
}

#[test]
fn settled_chunks_stay_settled_when_the_slice_is_planned_again() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let (a, b) = (set(1..=10), set(11..=30));
    write_plan(
        &ledger,
        plan(0, false, &[(Channel::Timeline, &a), (Channel::Push, &a)]),
    );
    block_on(ledger.settle(&settlement(
        Channel::Timeline,
        &a,
        ExpectedRevision::Any,
        Outcome::Delivered { count: 10 },
        5,
    )))
    .unwrap();
    let before = block_on(ledger.counts(POST)).unwrap();
    write_plan(&ledger, plan(0, true, &[(Channel::Timeline, &b)]));
    assert_eq!(block_on(ledger.counts(POST)).unwrap(), before);
    assert!(!before.unwrap().planned);
    write_plan(&ledger, plan(1, true, &[(Channel::Timeline, &b)]));
    let counts = block_on(ledger.counts(POST)).unwrap().unwrap();
    assert!(counts.planned);
    assert_eq!(
        (
            counts.timeline.targeted,
            counts.timeline.delivered,
            counts.timeline.pending
        ),
        (30, 10, 20)
    );
    assert_eq!((counts.push.targeted, counts.push.pending), (10, 10));
}

/// A row of an older Herald ends after the counts: it has no version and no chunk ids.
#[test]
fn a_plan_of_an_older_herald_is_published_as_it_is() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let chunks = [(Channel::Timeline, &set(1..=10)), (Channel::Push, &set(3..=4))];
    for (post, last, next_after) in [(8, true, None), (9, false, Some(UserKey(10)))] {
        let recorded = SlicePlan {
            post: PostId(post),
            ..plan(0, last, &chunks)
        };
        write_plan(&ledger, recorded.clone());
        let key = row::slice_key(recorded.post, 0);
        let head = [1, u8::from(last), 10, 2];
        let row = ledger.rows.get(key).unwrap().unwrap();
        assert!(row.starts_with(&head));
        ledger.rows.insert(key, head).unwrap();
        let again = SlicePlan {
            post: recorded.post,
            ..other_attempt()
        };
        let expected = SlicePlan {
            version: again.version,
            next_after,
            ..recorded.clone()
        };
        assert_eq!(write_plan(&ledger, again), expected);
        let audited = block_on(ledger.audit(recorded.post)).unwrap().unwrap();
        assert_eq!(audited.slices[0].version, None);
    }
}

#[test]
fn a_planned_chunk_that_is_missing_is_an_error() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let chunk = set(1..=4);
    write_plan(&ledger, plan(0, true, &[(Channel::Push, &chunk)]));
    let key = row::chunk_key(POST, RowKind::Chunk, Channel::Push, chunk.chunk_id());
    ledger.rows.remove(key).unwrap();
    let error = block_on(ledger.plan(other_attempt())).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Corrupt);
}
