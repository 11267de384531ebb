//! Tests of claims, of waiting recipients and of what is recorded about single recipients.

use super::*;
use crate::{
    DeadMessage, DeviceFailure, DeviceRetry, ErrorKind, FailedRecipient, PushFailure, RecipientStatus,
    SuppressedReason,
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

fn read(ledger: &Ledger, chunk: &Recipients) -> Outcome {
    let recorded = block_on(ledger.outcome(POST, Channel::Push, chunk.chunk_id())).unwrap();
    recorded.unwrap().outcome
}

#[test]
fn what_is_recorded_about_recipients_is_listed() {
    let mut store = Store::new();
    let chunk = set(1..=9);
    {
        let ledger = Ledger::open(store.database()).unwrap();
        write_plan(&ledger, plan(0, true, &[(Channel::Push, &chunk)]));
        settle(&ledger, &chunk, mixed(3), 1);
    }
    store.reopen();
    let ledger = Ledger::open(store.database()).unwrap();
    assert_eq!(read(&ledger, &chunk), mixed(3));
    let listed = block_on(ledger.recipients(POST, Channel::Push, None, None, 20)).unwrap();
    let plain = |user, state| RecipientStatus::new(UserKey(user), state);
    let pending = |user| RecipientStatus {
        expires_at: Some(Timestamp(77)),
        ..plain(user, DeliveryState::Pending)
    };
    let expected = [
        plain(1, DeliveryState::Delivered),
        RecipientStatus {
            suppressed: Some(SuppressedReason::NoDevice),
            ..plain(2, DeliveryState::Suppressed)
        },
        RecipientStatus {
            suppressed: Some(SuppressedReason::Muted),
            ..plain(3, DeliveryState::Suppressed)
        },
        plain(4, DeliveryState::Expired),
        RecipientStatus {
            failures: vec![refused(50)],
            ..plain(5, DeliveryState::Dead)
        },
        RecipientStatus {
            waiting: vec![retry(60, 2, "webhook status 503")],
            ..pending(6)
        },
        RecipientStatus {
            done: vec![DeviceId(70)],
            waiting: vec![retry(71, 1, "webhook timeout"), retry(72, 0, "webhook breaker")],
            ..pending(7)
        },
        RecipientStatus {
            done: vec![DeviceId(80)],
            failures: vec![refused(81)],
            ..pending(8)
        },
        pending(9),
    ];
    assert_eq!(listed, expected);
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
fn a_claim_is_a_revision_without_a_change() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let chunk = set(1..=9);
    write_plan(&ledger, plan(0, true, &[(Channel::Push, &chunk)]));
    let claim = |base| block_on(ledger.claim(POST, Channel::Push, chunk.chunk_id(), base, LEASE));
    assert_eq!(claim(0).unwrap(), 1);
    block_on(ledger.release_claim(POST, Channel::Push, chunk.chunk_id(), 1)).unwrap();
    // Another worker that has read the chunk before the claim.
    assert_eq!(claim(0).unwrap_err().kind(), ErrorKind::Conflict);
    let counts = block_on(ledger.counts(POST)).unwrap().unwrap().push;
    assert_eq!((counts.pending, counts.delivered), (9, 0));
    assert_eq!(settle(&ledger, &chunk, mixed(1), 5), 2);
    assert_eq!(claim(1).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(claim(2).unwrap(), 3);
    assert_eq!(read(&ledger, &chunk), mixed(1));
    let counts = block_on(ledger.counts(POST)).unwrap().unwrap().push;
    assert_eq!(counts.first_delivered_at, Some(Timestamp(5)));
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
fn of_concurrent_claims_one_wins() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let chunk = set(1..=9);
    write_plan(&ledger, plan(0, true, &[(Channel::Push, &chunk)]));
    let claim = || block_on(ledger.claim(POST, Channel::Push, chunk.chunk_id(), 0, LEASE));
    let won = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(claim)).collect();
        let claims = threads.into_iter().map(|thread| thread.join().unwrap());
        claims.flatten().count()
    });
    assert_eq!(won, 1);
}

#[test]
fn recipients_that_wait_in_a_later_generation_survive_the_death_of_a_message() {
    let store = Store::new();
    let ledger = Ledger::open(store.database()).unwrap();
    let chunk = set(1..=9);
    write_plan(&ledger, plan(0, true, &[(Channel::Push, &chunk)]));
    settle(&ledger, &chunk, mixed(3), 1);
    let marked = mark_dead(&ledger, &chunk, 2);
    // Recipient 9 was not tried, 8 has a device and none that waits; 6 and 7 continue in generation 3.
    assert_eq!(marked.dead_recipients, set([5, 9]));
    assert_eq!((marked.counts.delivered, marked.counts.dead), (2, 2));
    assert_eq!(mark_dead(&ledger, &chunk, 2), marked);
    let Outcome::Mixed { details, .. } = read(&ledger, &chunk) else {
        panic!("the outcome is not mixed")
    };
    assert_eq!(
        details.pending.iter().map(|one| one.user.0).collect::<Vec<_>>(),
        [6, 7]
    );
    assert_eq!(details.failed(UserKey(9)).unwrap().generation, 2);

    // The copy dies too.
    let marked = mark_dead(&ledger, &chunk, 3);
    assert_eq!(marked.dead_recipients, set([5, 6, 9]));
    assert_eq!((marked.counts.delivered, marked.counts.dead), (3, 3));
    let Outcome::Mixed { details, .. } = read(&ledger, &chunk) else {
        panic!("the outcome is not mixed")
    };
    assert_eq!(details.pending, []);
    let failed = details.failed(UserKey(6)).unwrap();
    assert_eq!(failed.generation, 3);
    assert_eq!(failed.failures[0].failure.reason, "webhook status 503");
}

#[test]
fn the_texts_of_a_failure_are_bounded() {
    let failure = PushFailure::new(&"ä".repeat(500), &"h".repeat(500));
    assert_eq!(failure.reason.len(), PushFailure::REASON_BYTES_MAX);
    assert_eq!(failure.host.len(), PushFailure::HOST_BYTES_MAX);
}
