//! Tests of claims, and of what the row of an outcome has about single recipients.

use super::*;
use crate::{
    DeadMessage, DeviceFailure, DeviceRetry, ErrorKind, FailedRecipient, PushFailure, SuppressedReason,
};

fn retry(device: u64, attempts: u32, reason: &str) -> DeviceRetry {
    DeviceRetry {
        device: DeviceId(device),
        attempts,
        next_at: Timestamp(1_000 + i64::from(attempts)),
        failure: PushFailure::new(reason, "push.example.com"),
    }
}

fn pending(user: u32, done: &[u64], waiting: Vec<DeviceRetry>) -> PendingRecipient {
    PendingRecipient {
        user: UserKey(user),
        done: done.iter().copied().map(DeviceId).collect(),
        waiting,
        failed: Vec::new(),
    }
}

fn refused(device: u64) -> DeviceFailure {
    DeviceFailure {
        device: Some(DeviceId(device)),
        failure: PushFailure::new("webhook status 400", "hooks.example.com"),
    }
}

/// Recipients 1 delivered, 2 and 3 suppressed, 4 expired, 5 dead, 6 to 9 pending, of whom 6 and 7 wait.
fn mixed(generation: u32) -> Outcome {
    Outcome::Mixed {
        delivered: set([1]),
        suppressed: set([2, 3]),
        expired: set([4]),
        dead: set([5]),
        details: OutcomeDetails {
            generation,
            expires_at: Some(Timestamp(77)),
            pending: vec![
                pending(6, &[], vec![retry(60, 2, "webhook status 503")]),
                pending(
                    7,
                    &[70],
                    vec![retry(71, 1, "webhook timeout"), retry(72, 0, "webhook breaker")],
                ),
                PendingRecipient {
                    failed: vec![refused(81)],
                    ..pending(8, &[80], Vec::new())
                },
            ],
            suppressed: vec![
                (SuppressedReason::NoDevice, set([2])),
                (SuppressedReason::Muted, set([3])),
            ],
            failed: vec![FailedRecipient {
                user: UserKey(5),
                generation: 0,
                failures: vec![refused(50)],
            }],
        },
    }
}

fn mark_dead(ledger: &Ledger, chunk: &Recipients, generation: u32) -> MarkedDead {
    let dead = DeadMessage {
        post: POST,
        channel: Channel::Push,
        chunk: chunk.chunk_id(),
        generation,
    };
    block_on(ledger.mark_dead(&dead, Timestamp(7))).unwrap().unwrap()
}

#[test]
fn a_row_without_details_is_read() {
    // A row as it was written before details existed: recipient 3 of 3 is pending with device 9 done.
    let mut bytes = vec![2, 1, 4, 1, 1, 0, 0, 0];
    for users in [set([1]), set([2]), set([]), set([])] {
        bytes.push(users.len() as u8);
        bytes.push(users.as_bytes().len() as u8);
        bytes.extend_from_slice(users.as_bytes());
    }
    bytes.extend([1, 3, 1, 9]);
    let recorded = row::decode_outcome(&bytes).unwrap();
    let expected = Outcome::Mixed {
        delivered: set([1]),
        suppressed: set([2]),
        expired: set([]),
        dead: set([]),
        details: OutcomeDetails {
            pending: vec![pending(3, &[9], Vec::new())],
            ..OutcomeDetails::default()
        },
    };
    assert_eq!((recorded.revision, recorded.outcome), (4, expected));
    // A row that is cut inside of its details is malformed.
    let whole = row::encode_outcome(1, &mixed(1), None);
    for end in bytes.len()..whole.len() {
        if let Ok(cut) = row::decode_outcome(&whole[..end]) {
            assert_eq!(
                row::encode_outcome(1, &cut.outcome, None),
                whole[..end],
                "only the row without details is whole"
            );
        }
    }
}

#[test]
fn a_claim_keeps_others_away_until_its_lease_ends_or_the_chunk_is_settled() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let chunk = set(1..=9);
    write_plan(&ledger, plan(0, true, &[(Channel::Push, &chunk)]));
    let id = chunk.chunk_id();
    let claim = |base, lease| block_on(ledger.claim(POST, Channel::Push, id, base, lease));
    let extend = |revision, lease| block_on(ledger.extend_claim(POST, Channel::Push, id, revision, lease));
    let release = |revision| block_on(ledger.release_claim(POST, Channel::Push, id, revision)).unwrap();

    assert_eq!(claim(0, LEASE).unwrap(), 1);
    for base in [0, 1] {
        assert_eq!(claim(base, LEASE).unwrap_err().kind(), ErrorKind::Claimed);
    }
    // Other chunks and channels are free.
    let other = set(10..=12).chunk_id();
    assert_eq!(
        block_on(ledger.claim(POST, Channel::Push, other, 0, LEASE)).unwrap(),
        1
    );
    assert_eq!(
        block_on(ledger.claim(POST, Channel::Timeline, id, 0, LEASE)).unwrap(),
        1
    );

    // The lease ends; until another claims the chunk, the holder can extend its claim.
    extend(1, Duration::ZERO).unwrap();
    extend(1, LEASE).unwrap();
    assert_eq!(claim(1, LEASE).unwrap_err().kind(), ErrorKind::Claimed);
    extend(1, Duration::ZERO).unwrap();
    assert_eq!(claim(1, LEASE).unwrap(), 2);
    assert_eq!(extend(1, LEASE).unwrap_err().kind(), ErrorKind::Conflict);
    release(1);
    assert_eq!(claim(2, LEASE).unwrap_err().kind(), ErrorKind::Claimed);

    assert_eq!(settle(&ledger, &chunk, mixed(1), 5), 3);
    assert_eq!(extend(2, LEASE).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(claim(3, LEASE).unwrap(), 4);
    release(4);
    assert_eq!(extend(4, LEASE).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(claim(4, LEASE).unwrap(), 5);
    mark_dead(&ledger, &chunk, 9);
    assert_eq!(extend(5, LEASE).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(claim(6, LEASE).unwrap(), 7);
}

#[test]
fn a_settlement_in_the_middle_of_the_work_keeps_the_claim() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let chunk = set(1..=9);
    write_plan(&ledger, plan(0, true, &[(Channel::Push, &chunk)]));
    let id = chunk.chunk_id();
    let claim = |base| block_on(ledger.claim(POST, Channel::Push, id, base, LEASE));
    let settle = |base, keep_claim| {
        block_on(ledger.settle(&Settlement {
            keep_claim,
            ..settlement(
                Channel::Push,
                &chunk,
                ExpectedRevision::Revision(base),
                mixed(1),
                5,
            )
        }))
        .unwrap()
    };
    let extend = |revision| block_on(ledger.extend_claim(POST, Channel::Push, id, revision, LEASE));
    assert_eq!(claim(0).unwrap(), 1);
    assert_eq!(settle(1, Some(LEASE)), 2);
    assert_eq!(claim(2).unwrap_err().kind(), ErrorKind::Claimed);
    assert_eq!(extend(1).unwrap_err().kind(), ErrorKind::Conflict);
    extend(2).unwrap();
    // The same outcome keeps the revision.
    assert_eq!(settle(2, Some(LEASE)), 2);
    assert_eq!(claim(2).unwrap_err().kind(), ErrorKind::Claimed);
    assert_eq!(settle(2, None), 2);
    assert_eq!(claim(2).unwrap(), 3);
}

#[test]
fn the_texts_of_a_failure_are_bounded() {
    let failure = PushFailure::new(&"ä".repeat(500), &"h".repeat(500));
    assert_eq!(failure.reason.len(), PushFailure::REASON_BYTES_MAX);
    assert_eq!(failure.host.len(), PushFailure::HOST_BYTES_MAX);
}
