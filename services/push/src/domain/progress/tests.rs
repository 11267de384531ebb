use proptest::prelude::*;

use super::*;

const RETRY: Verdict = Verdict::Retry {
    reason: Reason::Timeout,
    after: None,
};
const REFUSED: Verdict = Verdict::Refused(Reason::Status(400));

fn user(key: u32) -> UserKey {
    UserKey(key)
}

/// The state of a recipient after one attempt with these verdicts.
fn state_after(verdicts: &[Verdict], last: bool) -> DeliveryState {
    let mut progress = Progress::resume([user(1)], LedgerState::default());
    progress.expect_verdicts(0, u32::try_from(verdicts.len()).unwrap());
    for (id, verdict) in verdicts.iter().enumerate() {
        progress.record(0, DeviceId(id as u64), Provider::Webhook, *verdict);
    }
    if last {
        progress.settle_all_pending();
    }
    progress.recipients[0].state
}

#[test]
fn the_state_of_a_recipient_follows_from_its_verdicts() {
    use DeliveryState::*;
    use Verdict::{Accepted, Gone};
    let table: &[(&[Verdict], DeliveryState, DeliveryState)] = &[
        (&[Accepted], Delivered, Delivered),
        (&[Accepted, Accepted], Delivered, Delivered),
        (&[Accepted, Gone], Delivered, Delivered),
        (&[Accepted, REFUSED], Delivered, Delivered),
        (&[Accepted, RETRY], Pending, Delivered),
        (&[RETRY], Pending, Dead),
        (&[RETRY, REFUSED], Pending, Dead),
        (&[RETRY, Gone], Pending, Dead),
        (&[REFUSED], Dead, Dead),
        (&[REFUSED, Gone], Dead, Dead),
        (&[Gone], Suppressed, Suppressed),
        (&[Gone, Gone], Suppressed, Suppressed),
        (&[Verdict::Deleted], Suppressed, Suppressed),
        (&[Verdict::Expired], Expired, Expired),
        (&[Verdict::Expired, Gone], Expired, Expired),
        (&[Verdict::Expired, Accepted], Delivered, Delivered),
    ];
    for (verdicts, ordinary, last) in table {
        assert_eq!(state_after(verdicts, false), *ordinary, "{verdicts:?}");
        assert_eq!(
            state_after(verdicts, true),
            *last,
            "{verdicts:?} at the last attempt"
        );
    }
}

#[test]
fn a_recipient_is_settled_after_the_verdict_of_each_device() {
    let mut progress = Progress::resume([user(1)], LedgerState::default());
    progress.expect_verdicts(0, 2);
    progress.record(0, DeviceId(1), Provider::Webhook, Verdict::Accepted);
    assert!(progress.is_pending());
    assert_eq!(
        progress.partial().collect::<Vec<_>>(),
        [(user(1), &[DeviceId(1)][..])]
    );
    progress.record(0, DeviceId(2), Provider::Webhook, Verdict::Gone);
    assert!(!progress.is_pending());
    assert_eq!(progress.partial().count(), 0);
}

#[test]
fn the_longest_delay_applies_and_failures_are_counted() {
    let mut progress = Progress::resume((1..=3).map(user), LedgerState::default());
    let busy = |secs| Verdict::Retry {
        reason: Reason::Status(429),
        after: Some(Duration::from_secs(secs)),
    };
    progress.record(0, DeviceId(1), Provider::WebPush, busy(3));
    progress.record(1, DeviceId(2), Provider::WebPush, busy(2));
    progress.record(2, DeviceId(3), Provider::Webhook, REFUSED);
    assert_eq!(progress.retry_after(), Some(Duration::from_secs(3)));
    assert_eq!(
        progress.failures(),
        "web_push status 429: 2, webhook status 400: 1"
    );
    progress.settle_all_pending();
    assert_eq!(
        progress.failures(),
        "web_push status 429: 2, webhook status 400: 1"
    );
    assert_eq!(
        progress.counts(),
        Counts {
            dead: 3,
            ..Counts::default()
        }
    );
}

#[test]
fn revive_dead_makes_only_dead_recipients_pending() {
    let mut progress = Progress::resume((1..=3).map(user), LedgerState::default());
    progress.settle(0, DeliveryState::Delivered);
    progress.settle(1, DeliveryState::Dead);
    progress.settle(2, DeliveryState::Suppressed);
    progress.mark_recorded(7);
    progress.revive_dead();
    assert_eq!(
        progress.pending().map(|(_, user, _)| user.0).collect::<Vec<_>>(),
        [2]
    );
    assert_eq!(
        progress.counts(),
        Counts {
            delivered: 1,
            suppressed: 1,
            ..Counts::default()
        }
    );
    assert!(progress.is_changed());
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        4 => Just(Verdict::Accepted),
        1 => Just(Verdict::Gone),
        1 => Just(REFUSED),
        3 => Just(RETRY),
        1 => Just(Verdict::Expired),
        1 => Just(Verdict::Deleted),
    ]
}

fn ledger_state(progress: &Progress) -> LedgerState {
    let states = DeliveryState::ALL
        .into_iter()
        .filter(|state| *state != DeliveryState::Pending);
    LedgerState {
        revision: progress.revision() + 1,
        settled: states
            .flat_map(|s| progress.settled(s).map(move |user| (user, s)))
            .collect(),
        partial: progress
            .partial()
            .map(|(user, done)| (user, done.to_vec()))
            .collect(),
    }
}

proptest! {
    /// Attempts with crashes at any point: a device that accepted gets no second push, the counts always add up,
    /// settled recipients stay settled, and the last event has the counts of all recipients.
    #[test]
    fn attempts_add_up(
        devices in proptest::collection::vec(0_usize..4, 1..12),
        script in proptest::collection::vec((any_verdict(), any::<bool>(), any::<bool>()), 1..300),
        attempts in 1_usize..6,
    ) {
        let users: Vec<UserKey> = (1..=devices.len() as u32).map(user).collect();
        let mut script = script.into_iter().cycle();
        let mut accepted = std::collections::HashSet::new();
        let mut ledger = LedgerState::default();
        // Events by revision, which is part of their id: an event published again must be the same.
        let mut events = std::collections::BTreeMap::new();
        for attempt in 1..=attempts {
            let mut progress = Progress::resume(users.iter().copied(), ledger.clone());
            for (user, state) in &ledger.settled {
                prop_assert!(progress.settled(*state).any(|u| u == *user));
            }
            let pending: Vec<_> = progress.pending().map(|(i, u, done)| (i, u, done.to_vec())).collect();
            let mut crashed = false;
            'recipients: for (index, user, done) in pending {
                let ids: Vec<DeviceId> =
                    (0..devices[index]).map(|d| DeviceId(u64::from(user.0) * 10 + d as u64)).collect();
                let recipient = super::super::Recipient {
                    expired: false, post_gone: false, unwanted: false, devices: &ids, done: &done,
                };
                match super::super::decide(&recipient) {
                    super::super::Decision::Settle(state) => progress.settle(index, state),
                    super::super::Decision::Send(targets) => {
                        progress.expect_verdicts(index, targets.len() as u32);
                        for device in targets {
                            let (verdict, record, crash) = script.next().unwrap();
                            // A crash happens after a record, because an unrecorded push may be sent twice.
                            if verdict == Verdict::Accepted {
                                prop_assert!(accepted.insert(ids[device]));
                            }
                            progress.record(index, ids[device], Provider::Webhook, verdict);
                            if record || crash {
                                ledger = ledger_state(&progress);
                                progress.mark_recorded(ledger.revision);
                            }
                            if crash && attempt < attempts {
                                crashed = true;
                                break 'recipients;
                            }
                        }
                    }
                }
            }
            if !crashed {
                if attempt == attempts {
                    progress.settle_all_pending();
                    prop_assert!(!progress.is_pending());
                }
                if progress.is_changed() {
                    ledger = ledger_state(&progress);
                    progress.mark_recorded(ledger.revision);
                }
                let counts = progress.counts();
                prop_assert_eq!(*events.entry(progress.revision()).or_insert(counts), counts);
            }
            let pending = progress.pending().count();
            prop_assert_eq!(progress.counts().total() as usize + pending, users.len());
        }
        let (_, last) = events.pop_last().unwrap();
        prop_assert_eq!(last.total() as usize, users.len());
    }
}
