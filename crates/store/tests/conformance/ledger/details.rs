//! What is recorded about single recipients.

use herald_model::{Channel, DeliveryState, DeviceId, Recipients, UserKey, time::Timestamp};
use herald_store::{
    DeadMessage, DeviceFailure, DeviceRetry, FailedRecipient, Ledger, MarkedDead, Outcome, OutcomeDetails,
    PendingRecipient, PushFailure, RecipientStatus, SuppressedReason,
};

use super::{POST, counts, pending_with, plan_chunk, settle};
use crate::{engine::Engine, sample::set};

fn retry(device: u64, attempts: u32, reason: &str) -> DeviceRetry {
    DeviceRetry {
        device: DeviceId(device),
        attempts,
        next_at: Timestamp(1_000 + i64::from(attempts)),
        failure: PushFailure::new(reason, "push.example.com"),
    }
}

fn refused(device: u64) -> DeviceFailure {
    DeviceFailure {
        device: Some(DeviceId(device)),
        failure: PushFailure::new("webhook status 400", "hooks.example.com"),
    }
}

/// Recipients 1 delivered, 2 and 3 suppressed, 4 expired, 5 dead, 6 to 9 pending, of whom 6 and 7 wait.
pub(super) fn mixed(generation: u32) -> Outcome {
    Outcome::Mixed {
        delivered: set([1]),
        suppressed: set([2, 3]),
        expired: set([4]),
        dead: set([5]),
        details: OutcomeDetails {
            generation,
            expires_at: Some(Timestamp(77)),
            pending: vec![
                PendingRecipient {
                    waiting: vec![retry(60, 2, "webhook status 503")],
                    ..pending_with(6, &[])
                },
                PendingRecipient {
                    waiting: vec![retry(71, 1, "webhook timeout"), retry(72, 0, "webhook breaker")],
                    ..pending_with(7, &[70])
                },
                PendingRecipient {
                    failed: vec![refused(81)],
                    ..pending_with(8, &[80])
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

async fn mark_dead(ledger: &dyn Ledger, chunk: &Recipients, generation: u32) -> MarkedDead {
    let dead = DeadMessage {
        post: POST,
        channel: Channel::Push,
        chunk: chunk.chunk_id(),
        generation,
    };
    ledger.mark_dead(&dead, Timestamp(7)).await.unwrap().unwrap()
}

async fn details_of(ledger: &dyn Ledger, chunk: &Recipients) -> OutcomeDetails {
    let recorded = ledger
        .outcome(POST, Channel::Push, chunk.chunk_id())
        .await
        .unwrap();
    let Outcome::Mixed { details, .. } = recorded.unwrap().outcome else {
        panic!("the outcome is not mixed")
    };
    details
}

pub async fn what_is_recorded_about_recipients_is_listed<E: Engine>(engine: &mut E) {
    let chunk = set(1..=9);
    {
        let ledger = engine.stores().ledger;
        plan_chunk(&*ledger, Channel::Push, &chunk).await;
        settle(&*ledger, &chunk, mixed(3), 1).await;
    }
    engine.reopen().await;
    let ledger = engine.stores().ledger;
    let recorded = ledger
        .outcome(POST, Channel::Push, chunk.chunk_id())
        .await
        .unwrap();
    assert_eq!(recorded.unwrap().outcome, mixed(3));
    let listed = ledger
        .recipients(POST, Channel::Push, None, None, 20)
        .await
        .unwrap();
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
    let by_reason: Vec<_> = counts(&*ledger).await.push.suppressed_by.iter().collect();
    assert_eq!(
        by_reason,
        [(SuppressedReason::NoDevice, 1), (SuppressedReason::Muted, 1)]
    );
}

pub async fn recipients_that_wait_in_a_later_generation_survive_the_death_of_a_message<E: Engine>(
    engine: &mut E,
) {
    let ledger = engine.stores().ledger;
    let chunk = set(1..=9);
    plan_chunk(&*ledger, Channel::Push, &chunk).await;
    settle(&*ledger, &chunk, mixed(3), 1).await;
    let marked = mark_dead(&*ledger, &chunk, 2).await;
    // Recipient 9 was not tried, 8 has a device and none that waits; 6 and 7 continue in generation 3.
    assert_eq!(marked.dead_recipients, set([5, 9]));
    assert_eq!((marked.counts.delivered, marked.counts.dead), (2, 2));
    assert_eq!(mark_dead(&*ledger, &chunk, 2).await, marked);
    let details = details_of(&*ledger, &chunk).await;
    let pending: Vec<_> = details.pending.iter().map(|one| one.user.0).collect();
    assert_eq!(pending, [6, 7]);
    assert_eq!(details.failed(UserKey(9)).unwrap().generation, 2);

    // The copy dies too.
    let marked = mark_dead(&*ledger, &chunk, 3).await;
    assert_eq!(marked.dead_recipients, set([5, 6, 9]));
    assert_eq!((marked.counts.delivered, marked.counts.dead), (3, 3));
    let details = details_of(&*ledger, &chunk).await;
    assert_eq!(details.pending, []);
    let failed = details.failed(UserKey(6)).unwrap();
    assert_eq!(failed.generation, 3);
    assert_eq!(failed.failures[0].failure.reason, "webhook status 503");
}
