//! Tests of plans: the first one of a slice is recorded, and every later call returns it.

use super::*;

/// The plan of an attempt at slice 0 that reads other followers, at another version, with another configuration.
fn other_attempt() -> SlicePlan {
    SlicePlan {
        version: FollowVersion(9),
        ..plan(0, true, &[(Channel::Timeline, &set(5..=40))])
    }
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
