use std::collections::{BTreeMap, HashMap, HashSet};

use herald_store::Outcome;
use proptest::prelude::*;

use super::*;
use crate::domain::{Decision, Provider, Reason, decide};

const RETRY: Verdict = Verdict::Retry {
    reason: Reason::Timeout,
    after: None,
};
const REFUSED: Verdict = Verdict::Refused(Reason::Status(400));
const BACKOFF: Backoff = Backoff {
    base: Duration::from_secs(2),
    max: Duration::from_mins(5),
    requested_max: Duration::from_mins(5),
};
const NOW: Timestamp = Timestamp(1_000_000_000);
const HOUR: Duration = Duration::from_hours(1);

fn users(count: u32) -> Recipients {
    Recipients::from_sorted((1..=count).map(UserKey))
}

fn fresh(count: u32) -> Progress {
    Progress::resume(&users(count), None, 0, NOW.plus(HOUR))
}

/// A message of this generation that resumes from the recorded progress.
fn resumed(progress: &Progress, generation: u32) -> Progress {
    let recorded = RecordedOutcome {
        revision: progress.revision() + 1,
        outcome: progress.outcome(),
    };
    let recipients = progress.recipients.iter().map(|recipient| recipient.devices.user);
    Progress::resume(
        &Recipients::from_sorted(recipients),
        Some(recorded),
        generation,
        NOW.plus(HOUR),
    )
}

fn record(progress: &mut Progress, index: usize, device: u64, verdict: Verdict) {
    record_at(progress, index, device, verdict, NOW);
}

fn record_at(progress: &mut Progress, index: usize, device: u64, verdict: Verdict, now: Timestamp) {
    let sent = Sent {
        device: DeviceId(device),
        provider: Provider::Webhook,
        host: "hooks.example.com".into(),
        verdict,
    };
    progress.record(index, &sent, now, &BACKOFF, 1.0);
}

/// The state of a recipient after one attempt with these verdicts.
fn state_after(verdicts: &[Verdict], last: bool) -> DeliveryState {
    let mut progress = fresh(1);
    progress.expect_verdicts(0, u32::try_from(verdicts.len()).unwrap());
    for (id, verdict) in (1..).zip(verdicts) {
        record(&mut progress, 0, id, *verdict);
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
        (&[Verdict::Expired, REFUSED], Dead, Dead),
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
fn a_device_waits_for_its_own_back_off_and_delays_no_other() {
    let mut progress = fresh(3);
    let asked = Verdict::Retry {
        reason: Reason::Status(429),
        after: Some(Duration::from_secs(200)),
    };
    record(&mut progress, 0, 1, asked);
    record(&mut progress, 1, 2, RETRY);
    record(&mut progress, 2, 3, Verdict::Accepted);
    assert_eq!(progress.due(NOW).count(), 0);
    let wake = progress.next_wake(NOW).unwrap();
    assert_eq!((wake.generation, wake.after), (1, Duration::from_secs(2)));

    let later = NOW.plus(wake.after);
    let mut progress = resumed(&progress, 1);
    let due = |progress: &Progress, at| progress.due(at).map(|(index, _)| index).collect::<Vec<_>>();
    assert_eq!(due(&progress, later), [1]);
    assert_eq!(due(&progress, NOW.plus(Duration::from_secs(200))), [0, 1]);
    record_at(&mut progress, 1, 2, RETRY, later);
    // The second failure waits twice as long; the wait that was asked for spent no attempt.
    let attempts = |progress: &Progress, index: usize| progress.devices(index).waiting[0].attempts;
    assert_eq!((attempts(&progress, 0), attempts(&progress, 1)), (0, 2));
    let wake = progress.next_wake(later).unwrap();
    assert_eq!((wake.generation, wake.after), (2, Duration::from_secs(4)));
}

#[test]
fn a_chunk_wakes_at_most_once_a_second_and_at_the_end_of_the_time_to_live() {
    let mut progress = fresh(1);
    record(&mut progress, 0, 1, RETRY);
    let after = |now| progress.wake_after(now).unwrap();
    assert_eq!(after(NOW), Duration::from_secs(2));
    assert_eq!(after(NOW.plus(Duration::from_millis(1_999))), WAKE_INTERVAL);
    assert_eq!(after(NOW.plus(HOUR)), WAKE_INTERVAL);
    let mut progress = Progress::resume(&users(1), None, 0, NOW.plus(Duration::from_millis(1_500)));
    record(&mut progress, 0, 1, RETRY);
    assert_eq!(
        progress.next_wake(NOW).unwrap().after,
        Duration::from_millis(1_500)
    );
    progress.expire_pending();
    assert_eq!(progress.counts().expired, 1);
    assert_eq!(progress.next_wake(NOW), None);
    // What failed last stays known.
    let Outcome::Mixed { details, .. } = progress.outcome() else {
        panic!("the outcome is not mixed")
    };
    let failed = details.failed(UserKey(1)).unwrap();
    assert_eq!(failed.failures[0].failure.reason, "webhook timeout");
}

#[test]
fn an_older_message_only_makes_sure_that_the_copy_exists() {
    let mut progress = fresh(2);
    record(&mut progress, 0, 1, RETRY);
    record(&mut progress, 1, 2, Verdict::Accepted);
    assert_eq!(progress.next_wake(NOW).unwrap().generation, 1);
    // The message is redelivered after a crash before its acknowledgement.
    let mut again = resumed(&progress, 0);
    assert_eq!(again.next_wake(NOW).unwrap().generation, 1);
    assert!(!again.is_changed());
    // The copy comes too early: another one must follow it.
    let mut early = resumed(&progress, 1);
    assert_eq!(early.next_wake(NOW).unwrap().generation, 2);
    assert!(early.is_changed());
    // The redelivered message comes when the device is due.
    let mut late = resumed(&progress, 0);
    record(&mut late, 0, 1, RETRY);
    assert_eq!(late.next_wake(NOW).unwrap().generation, 2);
}

#[test]
fn each_dead_recipient_is_in_the_dead_letter_of_its_own_message() {
    let mut progress = fresh(2);
    record(&mut progress, 0, 1, REFUSED);
    record(&mut progress, 1, 2, RETRY);
    progress.next_wake(NOW).unwrap();
    let reason = "webhook status 400: 1 (hosts \"hooks.example.com (1)\", devices \"1\")";
    assert_eq!(progress.dead_reason().as_deref(), Some(reason));
    // The message is redelivered before it was terminated.
    assert_eq!(resumed(&progress, 0).dead_reason().as_deref(), Some(reason));
    let mut copy = resumed(&progress, 1);
    assert_eq!(copy.dead_reason(), None);
    record(&mut copy, 1, 2, Verdict::Refused(Reason::Status(403)));
    assert_eq!(
        copy.dead_reason().unwrap(),
        "webhook status 403: 1 (hosts \"hooks.example.com (1)\", devices \"2\")"
    );
    assert_eq!(copy.counts().dead, 2);
}

#[test]
fn a_refused_device_is_not_tried_again_while_another_waits() {
    let mut progress = fresh(1);
    progress.expect_verdicts(0, 2);
    record(&mut progress, 0, 1, REFUSED);
    record(&mut progress, 0, 2, RETRY);
    let progress = resumed(&progress, 1);
    let recipient = crate::domain::Recipient {
        unwanted: None,
        registered: &[DeviceId(1), DeviceId(2)],
        known: progress.devices(0),
    };
    assert_eq!(decide(&recipient, NOW.plus(HOUR)), Decision::Send(vec![1]));
    let mut removed = resumed(&progress, 1);
    removed.retain_waiting(0, &[DeviceId(1)]);
    removed.suppress(0, SuppressedReason::NoDevice);
    assert_eq!(removed.counts().dead, 1);
    let mut muted = resumed(&progress, 1);
    muted.suppress(0, SuppressedReason::Muted);
    assert_eq!(muted.counts().suppressed, 1);
}

#[test]
fn a_redrive_extends_the_time_to_live_for_all_messages() {
    let mut progress = fresh(1);
    record(&mut progress, 0, 1, RETRY);
    progress.next_wake(NOW).unwrap();
    let recorded = RecordedOutcome {
        revision: 1,
        outcome: progress.outcome(),
    };
    let extended = NOW.plus(3 * HOUR);
    let mut redriven = Progress::resume(&users(1), Some(recorded), 0, extended);
    assert_eq!(redriven.expires_at(), extended);
    record(&mut redriven, 0, 1, RETRY);
    redriven.next_wake(NOW).unwrap();
    assert_eq!(resumed(&redriven, 0).expires_at(), extended);
}

#[test]
fn revive_dead_makes_only_dead_recipients_pending() {
    let mut progress = fresh(3);
    record(&mut progress, 0, 1, Verdict::Accepted);
    record(&mut progress, 1, 2, REFUSED);
    progress.suppress(2, SuppressedReason::NoDevice);
    let mut progress = resumed(&progress, 0);
    progress.revive_dead();
    let due: Vec<_> = progress.due(NOW).map(|(_, known)| known.clone()).collect();
    assert_eq!(due, [PendingRecipient::new(UserKey(2))]);
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

#[test]
fn a_recorded_outcome_is_read_back_unchanged() {
    let mut progress = fresh(6);
    record(&mut progress, 0, 1, Verdict::Accepted);
    progress.suppress(1, SuppressedReason::PushOff);
    record(&mut progress, 2, 3, REFUSED);
    progress.expect_verdicts(3, 3);
    for (device, verdict) in [(4, Verdict::Accepted), (5, RETRY), (6, REFUSED)] {
        record(&mut progress, 3, device, verdict);
    }
    progress.settle_isolated(4, "panic: malformed");
    progress.next_wake(NOW).unwrap();
    let again = resumed(&progress, 1);
    assert_eq!(again.outcome(), progress.outcome());
    assert_eq!(again.counts(), progress.counts());
    assert_eq!(again.revision(), 1);
    let delivered = RecordedOutcome {
        revision: 1,
        outcome: Outcome::Delivered { count: 5 },
    };
    assert!(!Progress::resume(&users(5), Some(delivered), 0, NOW).is_pending());
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    let retry = |after| Verdict::Retry {
        reason: Reason::Status(429),
        after: Some(Duration::from_secs(after)),
    };
    prop_oneof![
        4 => Just(Verdict::Accepted),
        1 => Just(Verdict::Gone),
        1 => Just(REFUSED),
        3 => Just(RETRY),
        2 => (0..400_u64).prop_map(retry),
        1 => Just(Verdict::Deleted),
    ]
}

/// What happens after a message: a crash before the record, before the copy, or before the acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crash {
    BeforeCopy,
    BeforeAck,
    Not,
}

fn any_crash() -> impl Strategy<Value = Crash> {
    prop_oneof![
        1 => Just(Crash::BeforeCopy),
        1 => Just(Crash::BeforeAck),
        6 => Just(Crash::Not),
    ]
}

/// Delivers the message of this generation again after an ack wait.
fn redeliver(messages: &mut [(Timestamp, u32)], generation: u32, now: Timestamp) {
    let message = messages.iter_mut().find(|(_, other)| *other == generation);
    message.unwrap().0 = now.plus(Duration::from_secs(30));
}

proptest! {
    /// Messages of a chunk with crashes at any point, until the push expires: no device that accepted or refused gets a
    /// second push, none is tried before its time, a message is in flight while a recipient is pending, each dead
    /// recipient is in exactly one dead letter, and the counts always add up.
    #[test]
    fn messages_add_up(
        devices in proptest::collection::vec(0_usize..4, 1..12),
        script in proptest::collection::vec(any_verdict(), 1..300),
        crashes in proptest::collection::vec(any_crash(), 1..40),
    ) {
        let recipients = users(devices.len() as u32);
        let (mut script, mut crashes) = (script.into_iter().cycle(), crashes.into_iter());
        let mut final_devices = HashSet::new();
        let mut next_at: HashMap<DeviceId, Timestamp> = HashMap::new();
        let mut row: Option<RecordedOutcome> = None;
        let mut events: BTreeMap<u64, Counts> = BTreeMap::new();
        let mut dead_letters = 0;
        // Messages in flight: generation by due time. A new copy of a generation replaces the one before.
        let mut messages: Vec<(Timestamp, u32)> = vec![(NOW, 0)];
        let expires_at = NOW.plus(HOUR);
        while let Some((position, _)) = messages.iter().enumerate().min_by_key(|(_, (at, _))| *at) {
            let (now, generation) = messages[position];
            let mut progress = Progress::resume(&recipients, row.clone(), generation, expires_at);
            if now >= expires_at {
                progress.expire_pending();
            }
            let due: Vec<_> = progress.due(now).map(|(index, known)| (index, known.clone())).collect();
            for (index, known) in due {
                let ids: Vec<_> = (0..devices[index])
                    .map(|d| DeviceId(u64::from(known.user.0) * 10 + d as u64))
                    .collect();
                let recipient = crate::domain::Recipient { unwanted: None, registered: &ids, known: &known };
                match decide(&recipient, now) {
                    Decision::Suppress(reason) => progress.suppress(index, reason),
                    Decision::Wait => {}
                    Decision::Send(targets) => {
                        progress.expect_verdicts(index, targets.len() as u32);
                        for target in targets {
                            let (device, verdict) = (ids[target], script.next().unwrap());
                            prop_assert!(!final_devices.contains(&device));
                            prop_assert!(next_at.get(&device).is_none_or(|at| *at <= now));
                            match verdict {
                                Verdict::Accepted | Verdict::Refused(_) => {
                                    final_devices.insert(device);
                                }
                                _ => {
                                    next_at.insert(device, now.plus(Duration::from_secs(1)));
                                }
                            }
                            record_at(&mut progress, index, device.0, verdict, now);
                        }
                    }
                }
            }
            let wake = progress.next_wake(now);
            if progress.is_changed() {
                let revision = progress.revision() + 1;
                row = Some(RecordedOutcome { revision, outcome: progress.outcome() });
                progress.mark_recorded(revision);
            }
            let counts = progress.counts();
            let pending = progress.recipients.iter().filter(|r| r.state == DeliveryState::Pending).count();
            prop_assert_eq!(counts.total() as usize + pending, devices.len());
            prop_assert_eq!(*events.entry(progress.revision()).or_insert(counts), counts);
            prop_assert_eq!(wake.is_some(), pending > 0);
            match crashes.next().unwrap_or(Crash::Not) {
                // The message is redelivered.
                Crash::BeforeCopy => redeliver(&mut messages, generation, now),
                crash => {
                    if let Some(wake) = wake {
                        prop_assert!(wake.after >= WAKE_INTERVAL);
                        prop_assert!(wake.generation > generation);
                        messages.retain(|(_, other)| *other == generation || *other != wake.generation);
                        messages.push((now.plus(wake.after), wake.generation));
                    }
                    if crash == Crash::BeforeAck {
                        redeliver(&mut messages, generation, now);
                    } else {
                        messages.retain(|(_, other)| *other != generation);
                        dead_letters += progress
                            .recipients
                            .iter()
                            .filter(|r| r.state == DeliveryState::Dead && r.generation == generation)
                            .count();
                    }
                }
            }
            prop_assert!(pending == 0 || !messages.is_empty());
        }
        let (_, last) = events.pop_last().unwrap();
        prop_assert_eq!(last.total() as usize, devices.len());
        prop_assert_eq!(dead_letters, last.dead as usize);
    }
}
