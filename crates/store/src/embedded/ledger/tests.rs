mod details;
mod plans;

use std::collections::{BTreeMap, BTreeSet};

use herald_model::{DeviceId, FollowVersion};
use proptest::prelude::*;

use super::*;
use crate::{
    ChunkPlan, ExpectedRevision, Ledger as _, OutcomeDetails, PendingRecipient,
    embedded::testing::{Store, block_on},
};

const POST: PostId = PostId(7);
const LEASE: Duration = Duration::from_mins(10);

fn set(users: impl IntoIterator<Item = u32>) -> Recipients {
    Recipients::from_sorted(
        users
            .into_iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(UserKey),
    )
}

fn plan(slice: u32, last: bool, chunks: &[(Channel, &Recipients)]) -> SlicePlan {
    let chunks = chunks.iter().map(|(channel, recipients)| ChunkPlan {
        channel: *channel,
        recipients: Recipients::clone(recipients),
    });
    SlicePlan {
        post: POST,
        author: UserKey(3),
        slice,
        version: FollowVersion(1),
        chunks: chunks.collect(),
        next_after: (!last).then_some(UserKey(1_000)),
    }
}

/// Writes a plan; returns the recorded one.
fn write_plan(ledger: &Ledger, plan: SlicePlan) -> SlicePlan {
    block_on(ledger.plan(plan)).unwrap()
}

fn settlement(
    channel: Channel,
    recipients: &Recipients,
    base: ExpectedRevision,
    outcome: Outcome,
    at: i64,
) -> Settlement {
    Settlement {
        post: POST,
        channel,
        chunk: recipients.chunk_id(),
        base,
        outcome,
        at: Timestamp(at),
        keep_claim: None,
    }
}

/// Settles a push chunk with the recorded revision as the expected one.
fn settle(ledger: &Ledger, recipients: &Recipients, outcome: Outcome, at: i64) -> u64 {
    let before = block_on(ledger.outcome(POST, Channel::Push, recipients.chunk_id())).unwrap();
    let base = ExpectedRevision::Revision(before.map_or(0, |recorded| recorded.revision));
    block_on(ledger.settle(&settlement(Channel::Push, recipients, base, outcome, at))).unwrap()
}

/// An outcome from one number for each recipient: 0 pending, 1 delivered, 2 suppressed, 3 expired, 4 dead.
fn outcome(recipients: &Recipients, states: &[u8]) -> Outcome {
    let in_state = |wanted: u8| {
        set(recipients
            .iter()
            .zip(states.iter().cycle())
            .filter(|(_, s)| **s == wanted)
            .map(|(user, _)| user.0))
    };
    let pending = in_state(0);
    let pending = pending.iter().map(|user| PendingRecipient {
        user,
        done: vec![DeviceId(u64::from(user.0) << 40), DeviceId(1)],
        waiting: Vec::new(),
        failed: Vec::new(),
    });
    Outcome::Mixed {
        delivered: in_state(1),
        suppressed: in_state(2),
        expired: in_state(3),
        dead: in_state(4),
        details: OutcomeDetails {
            pending: pending.collect(),
            ..OutcomeDetails::default()
        },
    }
}

#[test]
fn a_repeated_backfill_is_recorded_once() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    block_on(ledger.record_backfill(&[PostId(3), POST], &set([70, 80]))).unwrap();
    block_on(ledger.record_backfill(&[POST], &set([70, 80]))).unwrap();
    let audited = block_on(ledger.audit(POST)).unwrap().unwrap();
    assert_eq!(audited.backfilled, [set([70, 80])]);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The number of targeted recipients equals the sum of all states at every step and after reopening.
    #[test]
    fn targeted_equals_settled_plus_pending(
        users in prop::collection::btree_set(1_u32..5_000, 1..200),
        size in 1_usize..40,
        settlements in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(0_u8..5, 1..9)), 0..30),
        page in 1_usize..70,
    ) {
        let mut store = Store::new();
        let users: Vec<u32> = users.into_iter().collect();
        let chunks: Vec<Recipients> = users.chunks(size).map(|c| set(c.iter().copied())).collect();
        let mut expected: BTreeMap<u32, u8> = users.iter().map(|user| (*user, 0)).collect();
        let mut outcomes = BTreeMap::new();
        {
            let ledger = Ledger::open(store.database()).unwrap();
            for (slice, chunk) in chunks.iter().enumerate() {
                let last = slice + 1 == chunks.len();
                write_plan(&ledger, plan(slice as u32, last, &[(Channel::Push, chunk)]));
            }
            for (at, (which, states)) in (0_i64..).zip(&settlements) {
                let chunk = which.get(&chunks);
                let outcome = outcome(chunk, states);
                expected.extend(chunk.iter().map(|u| u.0).zip(states.iter().copied().cycle()));
                settle(&ledger, chunk, outcome.clone(), at);
                outcomes.insert(chunk.chunk_id(), outcome);
                check(&ledger, &expected, page)?;
            }
        }
        store.reopen();
        let ledger = Ledger::open(store.database()).unwrap();
        check(&ledger, &expected, page)?;
        for chunk in &chunks {
            let found = block_on(ledger.outcome(POST, Channel::Push, chunk.chunk_id())).unwrap();
            prop_assert_eq!(found.as_ref().map(|f| &f.outcome), outcomes.get(&chunk.chunk_id()));
        }
    }

    #[test]
    fn decoding_arbitrary_bytes_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        for version in [1, 2] {
            let bytes = [&[version], &bytes[..]].concat();
            let _ = row::Slice::decode(&bytes);
            let _ = row::Slice::decode_pin(&bytes);
            let _ = row::decode_chunk(&bytes).and_then(|(_, set)| set.decode());
            let _ = row::decode_outcome(&bytes);
            let _ = row::read_chunk_key(&bytes);
            let _ = row::read_slice_key(&bytes);
        }
    }
}

fn check(
    ledger: &Ledger,
    expected: &BTreeMap<u32, u8>,
    page: usize,
) -> std::result::Result<(), TestCaseError> {
    let counts = block_on(ledger.counts(POST)).unwrap().unwrap();
    let push = counts.push;
    prop_assert!(counts.planned);
    prop_assert_eq!(push.targeted, expected.len() as u64);
    prop_assert_eq!(
        push.targeted,
        push.delivered + push.suppressed + push.expired + push.pending + push.dead
    );
    let in_state = |wanted: u8| {
        expected
            .iter()
            .filter(|(_, s)| **s == wanted)
            .map(|(u, _)| *u)
            .collect::<Vec<_>>()
    };
    let states = [
        (DeliveryState::Pending, push.pending),
        (DeliveryState::Delivered, push.delivered),
        (DeliveryState::Suppressed, push.suppressed),
        (DeliveryState::Expired, push.expired),
        (DeliveryState::Dead, push.dead),
    ];
    for (number, (state, count)) in states.into_iter().enumerate() {
        prop_assert_eq!(count, in_state(number as u8).len() as u64);
        prop_assert_eq!(pages(ledger, Some(state), page), in_state(number as u8));
    }
    prop_assert_eq!(
        pages(ledger, None, page),
        expected.keys().copied().collect::<Vec<_>>()
    );
    Ok(())
}

fn pages(ledger: &Ledger, state: Option<DeliveryState>, page: usize) -> Vec<u32> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let listed = block_on(ledger.recipients(POST, Channel::Push, state, after, page)).unwrap();
        let Some(last) = listed.last().map(|one| one.user) else {
            return all;
        };
        assert!(listed.len() <= page);
        after = Some(last);
        all.extend(listed.iter().map(|one| one.user.0));
    }
}
