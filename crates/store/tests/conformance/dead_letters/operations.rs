//! Redrives and discards of dead letters.

use std::{collections::BTreeSet, time::Duration};

use herald_model::time::Timestamp;
use herald_store::{
    Cause, DeadLetterId, DeadLetterState, DeadLetters, ErrorKind, Fence, NewOperation, Operation,
    OperationId, OperationKind, OperationState, Reopened, Reopening,
};

use super::{NOW, begin, claim, count_is, dead_letter, fill, get, operation, redrive_lease, versions};
use crate::engine::Engine;

const fn after_seconds(seconds: i64) -> Timestamp {
    Timestamp(NOW.0 + seconds * 1_000_000)
}

fn failed_again(id: u64, round: u32) -> Reopening {
    Reopening {
        dead_letter: DeadLetterId(id),
        round,
        cause: Cause::MaxDeliveries,
        reason: "max deliveries reached".into(),
        group: 8,
        group_reason: "max deliveries reached".into(),
        failed_at: NOW.plus(Duration::from_hours(1)),
    }
}

async fn stored(dead_letters: &dyn DeadLetters, id: OperationId) -> Operation {
    dead_letters.operation(id).await.unwrap().unwrap()
}

pub async fn a_redrive_changes_states_and_survives_a_restart<E: Engine>(engine: &mut E) {
    let begun = {
        let stores = engine.stores();
        let (dead_letters, fence) = (&*stores.dead_letters, redrive_lease(&stores).await);
        fill(dead_letters, 1..=5).await;
        let begun = begin(dead_letters, OperationKind::Redrive, &versions(1..=5, 0)).await;
        assert_eq!((begun.state, begun.selected), (OperationState::Running, 5));
        let step = dead_letters.claim(begun.id, 3, 40, NOW, &fence).await.unwrap();
        assert_eq!(step.dead_letters.len(), 3);
        assert!(step.dead_letters.iter().all(|dead_letter| {
            dead_letter.state == DeadLetterState::Redriving
                && dead_letter.round == 1
                && dead_letter.redrive == Some(begun.id)
                && dead_letter.operations == [begun.id]
        }));
        let sent = [(versions([1], 1)[0], 41), (versions([2], 1)[0], 42)];
        dead_letters.sent(begun.id, &sent).await.unwrap();
        begun
    };
    engine.reopen().await;

    let stores = engine.stores();
    let dead_letters = &*stores.dead_letters;
    let running = dead_letters.running().await.unwrap();
    assert_eq!(running.len(), 1);
    let progress = (
        running[0].reached,
        running[0].redrive_after,
        running[0].in_flight(),
    );
    assert_eq!(progress, (3, 40, 3));
    assert_eq!(running[0].what, operation(OperationKind::Redrive));
    assert_eq!(get(dead_letters, 2).await.redrive_sequence, 42);
    assert_eq!(get(dead_letters, 3).await.redrive_sequence, 0);

    // One succeeds and one fails; each result is reported twice.
    for expected in [Reopened::Open, Reopened::AlreadyRecorded] {
        dead_letters.resolve(&versions([1], 1), NOW).await.unwrap();
        assert_eq!(dead_letters.reopen(&failed_again(2, 1)).await.unwrap(), expected);
    }
    let now = stored(dead_letters, begun.id).await;
    assert_eq!((now.resolved, now.failed, now.in_flight()), (1, 1, 1));
    let failed = get(dead_letters, 2).await;
    assert_eq!(
        (failed.state, failed.round, failed.group),
        (DeadLetterState::Open, 1, 8)
    );
    assert_eq!(failed.first_failed_at, dead_letter(2).first_failed_at);
    assert!(failed.last_failed_at > failed.first_failed_at);

    // The third can't be sent. The redrive stops before the rest.
    dead_letters.reopen(&failed_again(3, 1)).await.unwrap();
    let now = stored(dead_letters, begun.id).await;
    assert_eq!((now.failed, now.in_flight()), (2, 0));
    assert_eq!(get(dead_letters, 3).await.state, DeadLetterState::Open);
    let stopped = dead_letters
        .finish(begun.id, OperationState::Stopped, "1 failed again", NOW)
        .await
        .unwrap();
    assert!(stopped.is_over());
    assert_eq!(stopped.reason, "1 failed again");
    let again = dead_letters
        .finish(begun.id, OperationState::Cancelled, "", NOW)
        .await
        .unwrap();
    assert_eq!(
        (again.state, &again.reason[..]),
        (OperationState::Stopped, "1 failed again")
    );
    let again = stores
        .leases
        .acquire("redrive", "the test", Duration::from_hours(1));
    let fence = again
        .await
        .unwrap()
        .expect("the same holder takes its lease again");
    assert_eq!(claim(&stores, begun.id, 10, NOW, &fence).await.dead_letters, []);
    assert_eq!(dead_letters.running().await.unwrap(), []);
    assert_eq!(get(dead_letters, 5).await, dead_letter(5));
    count_is(dead_letters, DeadLetterState::Open, 4).await;
    count_is(dead_letters, DeadLetterState::Resolved, 1).await;

    // A resolved dead letter that fails later is open again and counts as failed in the redrive.
    assert_eq!(
        dead_letters.reopen(&failed_again(1, 1)).await.unwrap(),
        Reopened::Open
    );
    let now = stored(dead_letters, begun.id).await;
    assert_eq!((now.resolved, now.failed), (0, 3));
    assert_eq!(
        dead_letters.reopen(&failed_again(9, 1)).await.unwrap(),
        Reopened::NotFound
    );
}

pub async fn concurrent_redrives_claim_each_dead_letter_once<E: Engine>(engine: &mut E) {
    // More than an engine keeps in one row of a selection.
    const COUNT: u64 = 2_500;
    let (stores, peer) = (engine.stores(), engine.peer().await);
    let fence = redrive_lease(&stores).await;
    fill(&*stores.dead_letters, 1..=COUNT).await;
    let redrives = (0..4_usize).map(|n| {
        let stores = [&stores, &peer][n % 2].clone();
        let fence = fence.clone();
        tokio::spawn(async move {
            let begun = begin(
                &*stores.dead_letters,
                OperationKind::Redrive,
                &versions(1..=COUNT, 0),
            )
            .await;
            let mut sent = Vec::new();
            loop {
                let step = claim(&stores, begun.id, 230, NOW, &fence).await;
                sent.extend(step.dead_letters.iter().map(|dead_letter| dead_letter.id.0));
                if step.operation.reached == step.operation.selected {
                    assert_eq!(step.operation.skipped + sent.len() as u64, COUNT);
                    return sent;
                }
            }
        })
    });
    let sent = futures::future::join_all(redrives).await;
    let sent: Vec<u64> = sent.into_iter().flat_map(|sent| sent.unwrap()).collect();
    assert_eq!(sent.len() as u64, COUNT);
    assert_eq!(sent.iter().collect::<BTreeSet<_>>().len() as u64, COUNT);
    // A dead letter that was redriven since it was selected is skipped.
    stores.dead_letters.reopen(&failed_again(1, 1)).await.unwrap();
    let late = begin(&*stores.dead_letters, OperationKind::Redrive, &versions([1], 0)).await;
    let step = claim(&stores, late.id, 1, NOW, &fence).await;
    assert_eq!((step.dead_letters.len(), step.operation.skipped), (0, 1));
}

pub async fn a_discard_takes_open_dead_letters_and_is_recorded<E: Engine>(engine: &mut E) {
    let (redrive, discard, nothing) = {
        let stores = engine.stores();
        let (dead_letters, fence) = (&*stores.dead_letters, redrive_lease(&stores).await);
        fill(dead_letters, 1..=250).await;
        let redrive = begin(dead_letters, OperationKind::Redrive, &versions([2], 0)).await;
        claim(&stores, redrive.id, 1, NOW, &fence).await;
        let discard = begin(dead_letters, OperationKind::Discard, &versions(1..=240, 0)).await;
        let mut steps = 0;
        let done = loop {
            let step = dead_letters.discard(discard.id, 100, NOW).await.unwrap();
            steps += 1;
            if step.operation.state == OperationState::Done {
                break step.operation;
            }
        };
        assert_eq!(
            (steps, done.applied(), done.skipped, done.is_over()),
            (3, 239, 1, true)
        );
        assert_eq!(
            dead_letters.reopen(&failed_again(1, 0)).await.unwrap(),
            Reopened::AlreadyRecorded
        );
        let nothing = begin(dead_letters, OperationKind::Discard, &[]).await;
        assert!(nothing.is_over());
        (redrive.id, discard.id, nothing.id)
    };
    engine.reopen().await;
    let dead_letters = engine.stores().dead_letters;
    count_is(&*dead_letters, DeadLetterState::Discarded, 239).await;
    let all = dead_letters.operations(None, 10).await.unwrap();
    let all: Vec<_> = all.iter().map(|operation| operation.id).collect();
    assert_eq!(all, [nothing, discard, redrive]);
    assert!(nothing > discard && discard > redrive);
    let some = dead_letters.operations(Some(nothing), 1).await.unwrap();
    assert_eq!(
        (some[0].id, some[0].what.kind, &some[0].what.actor[..]),
        (discard, OperationKind::Discard, "ops@host")
    );
    // Operation ids are not reused after a restart.
    let next = begin(&*dead_letters, OperationKind::Cancel, &[]).await;
    assert!(next.id > nothing);
}

pub async fn a_redrive_ends_with_its_last_outcome<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let (dead_letters, fence) = (&*stores.dead_letters, redrive_lease(&stores).await);
    fill(dead_letters, 1..=3).await;
    let id = begin(dead_letters, OperationKind::Redrive, &versions(1..=3, 0))
        .await
        .id;
    let ended_at = async || stored(dead_letters, id).await.ended_at;
    claim(&stores, id, 3, after_seconds(1), &fence).await;
    // An outcome before the end doesn't end it.
    assert_eq!(
        dead_letters
            .resolve(&versions([1], 1), after_seconds(2))
            .await
            .unwrap(),
        1
    );
    assert_eq!(ended_at().await, None);
    dead_letters
        .finish(id, OperationState::Done, "", after_seconds(3))
        .await
        .unwrap();
    assert_eq!(ended_at().await, Some(after_seconds(3)));
    assert_eq!(
        dead_letters
            .resolve(&versions([2, 1], 1), after_seconds(8))
            .await
            .unwrap(),
        1
    );
    assert_eq!(ended_at().await, Some(after_seconds(8)));
    // The failure was reported late: it was before the last outcome.
    for (dead_letter, at, expected) in [(3, 6, 8), (2, 9, 9)] {
        let failed = Reopening {
            failed_at: after_seconds(at),
            ..failed_again(dead_letter, 1)
        };
        dead_letters.reopen(&failed).await.unwrap();
        assert_eq!(ended_at().await, Some(after_seconds(expected)));
    }
}

pub async fn a_redrive_counts_the_dead_letters_whose_pushes_had_expired<E: Engine>(engine: &mut E) {
    let first = {
        let stores = engine.stores();
        let (dead_letters, fence) = (&*stores.dead_letters, redrive_lease(&stores).await);
        fill(dead_letters, 1..=10).await;
        let begun = begin(dead_letters, OperationKind::Redrive, &versions(1..=10, 0)).await;
        // The pushes of dead letter `n` expire after `n` seconds.
        let step = claim(&stores, begun.id, 6, after_seconds(4), &fence).await;
        assert_eq!((step.dead_letters.len(), step.operation.expired), (6, 4));
        let step = claim(&stores, begun.id, 6, after_seconds(8), &fence).await;
        assert_eq!((step.dead_letters.len(), step.operation.expired), (4, 6));
        for id in 1..=10 {
            dead_letters.reopen(&failed_again(id, 1)).await.unwrap();
        }
        begun.id
    };
    engine.reopen().await;

    // With a new time to live, no push has expired.
    {
        let stores = engine.stores();
        let (dead_letters, fence) = (&*stores.dead_letters, redrive_lease(&stores).await);
        assert_eq!(stored(dead_letters, first).await.expired, 6);
        let request = NewOperation {
            push_ttl: Some(Duration::from_hours(1)),
            ..operation(OperationKind::Redrive)
        };
        let begun = dead_letters.begin(&request, &versions(1..=10, 1)).await.unwrap();
        let step = claim(&stores, begun.id, 10, after_seconds(9), &fence).await;
        assert_eq!((step.dead_letters.len(), step.operation.expired), (10, 0));
        assert_eq!(stored(dead_letters, begun.id).await.what, request);
        for id in 1..=10 {
            dead_letters.reopen(&failed_again(id, 2)).await.unwrap();
        }
    }
    engine.reopen().await;

    // It stays when they fail again.
    let stores = engine.stores();
    let (dead_letters, fence) = (&*stores.dead_letters, redrive_lease(&stores).await);
    let begun = begin(dead_letters, OperationKind::Redrive, &versions(1..=10, 2)).await;
    let step = claim(&stores, begun.id, 10, after_seconds(100), &fence).await;
    assert_eq!((step.dead_letters.len(), step.operation.expired), (10, 0));
    let extended_to = Some(after_seconds(9 + 3_600));
    assert!(
        step.dead_letters
            .iter()
            .all(|dead_letter| dead_letter.pushes_expire_at == extended_to)
    );
}

pub async fn a_fenced_owner_claims_nothing<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let dead_letters = &*stores.dead_letters;
    fill(dead_letters, 1..=2).await;
    let begun = begin(dead_letters, OperationKind::Redrive, &versions(1..=2, 0)).await;
    let before = redrive_lease(&stores).await;
    let now = redrive_lease(&stores).await;
    assert!(now.token > before.token);
    let refusal = async |fence: &Fence| {
        let refused = dead_letters.claim(begun.id, 1, 0, NOW, fence).await;
        refused.err().map(|error| error.kind())
    };
    assert_eq!(refusal(&before).await, Some(ErrorKind::Fenced));
    assert_eq!(stored(dead_letters, begun.id).await.reached, 0);
    assert_eq!(refusal(&now).await, None);
    stores.leases.release(&now).await.unwrap();
    assert_eq!(refusal(&now).await, Some(ErrorKind::Fenced));
    let unknown = Fence {
        name: "nobody's".into(),
        token: 1,
    };
    assert_eq!(refusal(&unknown).await, Some(ErrorKind::Fenced));
    assert_eq!(stored(dead_letters, begun.id).await.reached, 1);
}

pub async fn no_more_operations_run_than_the_maximum<E: Engine>(engine: &mut E) {
    let dead_letters = engine.stores().dead_letters;
    fill(&*dead_letters, 1..=20).await;
    let redrive = operation(OperationKind::Redrive);
    let begin_all = async |ids: std::ops::Range<u64>| {
        let begins = ids.map(|id| {
            let (dead_letters, redrive) = (dead_letters.clone(), redrive.clone());
            async move { dead_letters.begin_below(&redrive, &versions([id], 0), 3).await }
        });
        let begun = futures::future::join_all(begins).await;
        let (begun, refused): (Vec<_>, Vec<_>) = begun.into_iter().partition(Result::is_ok);
        for error in refused.into_iter().filter_map(Result::err) {
            assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
        }
        begun.into_iter().flatten().collect::<Vec<_>>()
    };
    let begun = begin_all(1..11).await;
    assert_eq!(begun.len(), 3);
    assert_eq!(begin_all(11..12).await.len(), 0);
    assert_eq!(dead_letters.running().await.unwrap().len(), 3);
    // An operation that selected nothing is done at once, and others may begin without a maximum.
    begin(&*dead_letters, OperationKind::Redrive, &versions([20], 0)).await;
    for ended in &begun[..2] {
        let done = dead_letters.finish(ended.id, OperationState::Done, "", NOW);
        done.await.unwrap();
    }
    assert_eq!(begin_all(12..16).await.len(), 1);
    assert_eq!(dead_letters.running().await.unwrap().len(), 3);
}

pub async fn a_missing_operation_is_an_error<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let (dead_letters, fence) = (&*stores.dead_letters, redrive_lease(&stores).await);
    let missing = OperationId(99);
    assert_eq!(dead_letters.operation(missing).await.unwrap(), None);
    let errors = [
        dead_letters.claim(missing, 1, 0, NOW, &fence).await.err(),
        dead_letters.discard(missing, 1, NOW).await.err(),
        dead_letters
            .finish(missing, OperationState::Done, "", NOW)
            .await
            .err(),
    ];
    for error in errors {
        assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Corrupt));
    }
}
