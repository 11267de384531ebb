mod find;
mod redrive;

use std::{collections::BTreeSet, time::Duration};

use herald_model::{Channel, ChunkId, Lane, PostId, UserKey};
use proptest::prelude::*;

use super::*;
use crate::{Cause, DeadLetters, Leases as _, MessageRef, OperationKind, Payload, embedded::testing::Store};

const NOW: Timestamp = Timestamp(1_700_000_000_000_000);

fn open(store: &Store) -> EmbeddedDeadLetters {
    let leases = Arc::new(EmbeddedLeases::open(store.database()).unwrap());
    EmbeddedDeadLetters::open(store.database(), &leases).unwrap()
}

/// Takes the lease that guards claims.
async fn fence(dead_letters: &EmbeddedDeadLetters) -> Fence {
    let leases = &dead_letters.tables.leases;
    let fence = leases.acquire("redrive", "test", Duration::from_mins(10)).await;
    fence.unwrap().unwrap()
}

fn dead_letter(id: u64) -> DeadLetter {
    DeadLetter {
        id: DeadLetterId(id),
        origin: MessageRef {
            stream: "PUSH".into(),
            consumer: "push-normal".into(),
            sequence: 1_000 + id,
        },
        kind: "push".into(),
        original_sequence: 1_000 + id,
        subject: "push.v1.deliver.normal".into(),
        message_type: "herald.mesh.v1.PushChunk".into(),
        cause: Cause::Terminated,
        reason: format!("push failed: webhook status 503: {id}"),
        group: 7,
        group_reason: "push failed: webhook status 503".into(),
        attempts: 20,
        published_at: NOW.minus(Duration::from_mins(5)),
        first_failed_at: NOW.plus(Duration::from_secs(id)),
        last_failed_at: NOW.plus(Duration::from_secs(id)),
        stored_at: NOW.plus(Duration::from_secs(id)),
        post: Some(PostId(id)),
        author: Some(UserKey(3)),
        channel: Some(Channel::Push),
        chunk: Some(ChunkId(u64::MAX - id)),
        lane: Some(Lane::Normal),
        recipients: 12,
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".into(),
        payload: Payload::Kept,
        payload_bytes: 100,
        state: DeadLetterState::Open,
        round: 0,
        redrive: None,
        operations: Vec::new(),
        redrive_sequence: 0,
        updated_at: NOW,
        pushes_expire_at: Some(NOW.plus(Duration::from_secs(id))),
    }
}

async fn fill(dead_letters: &EmbeddedDeadLetters, ids: std::ops::RangeInclusive<u64>) {
    let all: Vec<_> = ids.map(dead_letter).collect();
    assert!(dead_letters.insert(&all).await.unwrap().iter().all(|one| one.new));
}

fn operation(kind: OperationKind) -> NewOperation {
    NewOperation {
        kind,
        actor: "ops@host".into(),
        at: NOW,
        selection: bytes::Bytes::from_static(b"all of them"),
        excluded: 0,
        rate_max: 0,
        failures_max: 100,
        push_ttl: None,
        target: None,
    }
}

fn versions(ids: impl IntoIterator<Item = u64>, round: u32) -> Vec<DeadLetterVersion> {
    let version = |id| DeadLetterVersion {
        id: DeadLetterId(id),
        round,
    };
    ids.into_iter().map(version).collect()
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

async fn get(dead_letters: &EmbeddedDeadLetters, id: u64) -> DeadLetter {
    dead_letters
        .get(&[DeadLetterId(id)])
        .await
        .unwrap()
        .remove(0)
        .unwrap()
}

async fn ids(dead_letters: &EmbeddedDeadLetters, filter: &DeadLetterFilter, order: Order) -> Vec<u64> {
    let page = dead_letters.scan(filter, order, None, 1_000_000).await.unwrap();
    assert_eq!(page.next, None);
    page.dead_letters
        .iter()
        .map(|dead_letter| dead_letter.id.0)
        .collect()
}

#[tokio::test]
async fn repeated_inserts_of_a_message_make_one_dead_letter() {
    let mut store = Store::new();
    let dead_letters = open(&store);
    let again = DeadLetter {
        origin: dead_letter(1).origin,
        ..dead_letter(3)
    };
    let inserted = dead_letters
        .insert(&[dead_letter(1), dead_letter(2), again.clone()])
        .await
        .unwrap();
    let results: Vec<_> = inserted.iter().map(|one| (one.id.0, one.new)).collect();
    assert_eq!(results, [(1, true), (2, true), (1, false)]);
    drop(dead_letters);
    store.reopen();
    let dead_letters = open(&store);
    let inserted = dead_letters.insert(&[again]).await.unwrap();
    assert_eq!((inserted[0].id.0, inserted[0].new), (1, false));
    assert_eq!(get(&dead_letters, 1).await, dead_letter(1));
    assert_eq!(dead_letters.count(DeadLetterState::Open).await.unwrap(), 2);
    assert_eq!(
        dead_letters
            .get(&[DeadLetterId(3), DeadLetterId(2)])
            .await
            .unwrap(),
        [None, Some(dead_letter(2))]
    );
}

#[tokio::test]
async fn a_redrive_changes_states_and_survives_a_restart() {
    let mut store = Store::new();
    let dead_letters = open(&store);
    fill(&dead_letters, 1..=5).await;
    let begun = dead_letters
        .begin(&operation(OperationKind::Redrive), &versions(1..=5, 0))
        .await
        .unwrap();
    assert_eq!(
        (begun.id, begun.state, begun.selected),
        (OperationId(1), OperationState::Running, 5)
    );
    let step = dead_letters
        .claim(begun.id, 3, 40, NOW, &fence(&dead_letters).await)
        .await
        .unwrap();
    assert_eq!(step.dead_letters.len(), 3);
    assert!(
        step.dead_letters
            .iter()
            .all(|dead_letter| dead_letter.state == DeadLetterState::Redriving
                && dead_letter.round == 1
                && dead_letter.redrive == Some(begun.id)
                && dead_letter.operations == [begun.id])
    );
    dead_letters
        .sent(begun.id, &[(versions([1], 1)[0], 41), (versions([2], 1)[0], 42)])
        .await
        .unwrap();

    drop(dead_letters);
    store.reopen();
    let dead_letters = open(&store);
    let running = dead_letters.running().await.unwrap();
    assert_eq!(running.len(), 1);
    assert_eq!(
        (
            running[0].reached,
            running[0].redrive_after,
            running[0].in_flight()
        ),
        (3, 40, 3)
    );
    assert_eq!(running[0].what, operation(OperationKind::Redrive));
    assert_eq!(get(&dead_letters, 2).await.redrive_sequence, 42);
    assert_eq!(get(&dead_letters, 3).await.redrive_sequence, 0);

    // One succeeds and one fails; each result is reported twice.
    for _ in 0..2 {
        dead_letters.resolve(&versions([1], 1), NOW).await.unwrap();
        dead_letters.reopen(&failed_again(2, 1)).await.unwrap();
    }
    let now = dead_letters.operation(begun.id).await.unwrap().unwrap();
    assert_eq!((now.resolved, now.failed, now.in_flight()), (1, 1, 1));
    let failed = get(&dead_letters, 2).await;
    assert_eq!(
        (failed.state, failed.round, failed.group),
        (DeadLetterState::Open, 1, 8)
    );
    assert_eq!(failed.first_failed_at, dead_letter(2).first_failed_at);
    assert!(failed.last_failed_at > failed.first_failed_at);

    // The third can't be sent. The redrive stops before the rest.
    dead_letters.reopen(&failed_again(3, 1)).await.unwrap();
    let now = dead_letters.operation(begun.id).await.unwrap().unwrap();
    assert_eq!((now.failed, now.in_flight()), (2, 0));
    assert_eq!(get(&dead_letters, 3).await.state, DeadLetterState::Open);
    let now = dead_letters
        .finish(begun.id, OperationState::Stopped, "1 failed again", NOW)
        .await
        .unwrap();
    assert!(now.is_over());
    let again = dead_letters
        .finish(begun.id, OperationState::Cancelled, "", NOW)
        .await
        .unwrap();
    assert_eq!(again.state, OperationState::Stopped);
    assert!(
        dead_letters
            .claim(begun.id, 10, 0, NOW, &fence(&dead_letters).await)
            .await
            .unwrap()
            .dead_letters
            .is_empty()
    );
    assert_eq!(dead_letters.running().await.unwrap(), []);
    assert_eq!(get(&dead_letters, 5).await, dead_letter(5));
    let by_state = [
        dead_letters.count(DeadLetterState::Open).await.unwrap(),
        dead_letters.count(DeadLetterState::Resolved).await.unwrap(),
    ];
    assert_eq!(by_state, [4, 1]);

    // A resolved dead letter that fails later is open again and counts as failed in the redrive.
    assert_eq!(
        dead_letters.reopen(&failed_again(1, 1)).await.unwrap(),
        Reopened::Open
    );
    let now = dead_letters.operation(begun.id).await.unwrap().unwrap();
    assert_eq!((now.resolved, now.failed), (0, 3));
    assert_eq!(
        dead_letters.reopen(&failed_again(9, 1)).await.unwrap(),
        Reopened::NotFound
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_redrives_claim_each_dead_letter_once() {
    let store = Store::new();
    let dead_letters = Arc::new(open(&store));
    fill(&dead_letters, 1..=3_000).await;
    let held = fence(&dead_letters).await;
    let redrives = (0..4).map(|_| {
        let (dead_letters, held) = (Arc::clone(&dead_letters), held.clone());
        tokio::spawn(async move {
            let begun = dead_letters
                .begin(&operation(OperationKind::Redrive), &versions(1..=3_000, 0))
                .await
                .unwrap();
            let mut sent = Vec::new();
            loop {
                let step = dead_letters.claim(begun.id, 700, 0, NOW, &held).await.unwrap();
                sent.extend(step.dead_letters.iter().map(|dead_letter| dead_letter.id.0));
                if step.operation.reached == step.operation.selected {
                    assert_eq!(step.operation.skipped + sent.len() as u64, 3_000);
                    return sent;
                }
            }
        })
    });
    let sent = futures::future::join_all(redrives).await;
    let sent: Vec<u64> = sent.into_iter().flat_map(|sent| sent.unwrap()).collect();
    assert_eq!(sent.len(), 3_000);
    assert_eq!(sent.iter().collect::<BTreeSet<_>>().len(), 3_000);
    // A dead letter that was redriven since it was selected is skipped.
    dead_letters.reopen(&failed_again(1, 1)).await.unwrap();
    let late = dead_letters
        .begin(&operation(OperationKind::Redrive), &versions([1], 0))
        .await
        .unwrap();
    let step = dead_letters
        .claim(late.id, 1, 0, NOW, &fence(&dead_letters).await)
        .await
        .unwrap();
    assert_eq!((step.dead_letters.len(), step.operation.skipped), (0, 1));
}

#[tokio::test]
async fn a_discard_takes_open_dead_letters_and_is_recorded() {
    let mut store = Store::new();
    let dead_letters = open(&store);
    fill(&dead_letters, 1..=2_500).await;
    let redrive = dead_letters
        .begin(&operation(OperationKind::Redrive), &versions([2], 0))
        .await
        .unwrap();
    dead_letters
        .claim(redrive.id, 1, 0, NOW, &fence(&dead_letters).await)
        .await
        .unwrap();
    let discard = dead_letters
        .begin(&operation(OperationKind::Discard), &versions(1..=2_400, 0))
        .await
        .unwrap();
    let mut steps = 0;
    let done = loop {
        let step = dead_letters.discard(discard.id, 1_000, NOW).await.unwrap();
        steps += 1;
        if step.operation.state == OperationState::Done {
            break step.operation;
        }
    };
    assert_eq!(
        (steps, done.applied(), done.skipped, done.is_over()),
        (3, 2_399, 1, true)
    );
    assert_eq!(
        dead_letters.count(DeadLetterState::Discarded).await.unwrap(),
        2_399
    );
    assert_eq!(
        dead_letters.reopen(&failed_again(1, 0)).await.unwrap(),
        Reopened::AlreadyRecorded
    );
    let nothing = dead_letters
        .begin(&operation(OperationKind::Discard), &[])
        .await
        .unwrap();
    assert!(nothing.is_over());

    drop(dead_letters);
    store.reopen();
    let dead_letters = open(&store);
    assert_eq!(
        dead_letters.count(DeadLetterState::Discarded).await.unwrap(),
        2_399
    );
    let all: Vec<_> = dead_letters
        .operations(None, 10)
        .await
        .unwrap()
        .iter()
        .map(|operation| operation.id.0)
        .collect();
    assert_eq!(all, [3, 2, 1]);
    let some = dead_letters.operations(Some(OperationId(3)), 1).await.unwrap();
    assert_eq!(
        (some[0].id, some[0].what.kind, &some[0].what.actor[..]),
        (OperationId(2), OperationKind::Discard, "ops@host")
    );
    // Operation ids are not reused after a restart.
    let next = dead_letters
        .begin(&operation(OperationKind::Cancel), &versions([], 0))
        .await
        .unwrap();
    assert_eq!(next.id, OperationId(4));
}

#[tokio::test]
async fn trim_deletes_old_rows_except_redriving_dead_letters() {
    let store = Store::new();
    let dead_letters = open(&store);
    fill(&dead_letters, 1..=10).await;
    let redrive = dead_letters
        .begin(&operation(OperationKind::Redrive), &versions([2], 0))
        .await
        .unwrap();
    dead_letters
        .claim(redrive.id, 1, 0, NOW, &fence(&dead_letters).await)
        .await
        .unwrap();
    dead_letters
        .finish(redrive.id, OperationState::Done, "", NOW)
        .await
        .unwrap();
    let removed = dead_letters.trim(dead_letter(6).stored_at, NOW).await.unwrap();
    assert_eq!(removed, 4);
    assert_eq!(
        ids(&dead_letters, &DeadLetterFilter::default(), Order::OldestFirst).await,
        [2, 6, 7, 8, 9, 10]
    );
    assert_eq!(dead_letters.count(DeadLetterState::Open).await.unwrap(), 5);
    assert!(dead_letters.operation(redrive.id).await.unwrap().is_some());
    dead_letters
        .trim(dead_letter(6).stored_at, NOW.plus(Duration::from_secs(1)))
        .await
        .unwrap();
    assert!(dead_letters.operation(redrive.id).await.unwrap().is_none());
    // The message of a trimmed dead letter makes a new dead letter.
    assert!(dead_letters.insert(&[dead_letter(1)]).await.unwrap()[0].new);
}

proptest! {
    #[test]
    fn a_decoded_selected_row_equals_the_encoded_one(
        dead_letters in prop::collection::vec((any::<u64>(), any::<u32>()), 0..100),
    ) {
        let dead_letters = dead_letters.into_iter();
        let dead_letters: Vec<_> = dead_letters.map(|(id, round)| DeadLetterVersion { id: DeadLetterId(id), round }).collect();
        prop_assert_eq!(row::decode_selected(&row::encode_selected(&dead_letters)).unwrap(), dead_letters);
    }

    #[test]
    fn decoding_arbitrary_bytes_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = row::decode_dead_letter(DeadLetterId(1), &bytes);
        let _ = row::decode_operation(OperationId(1), &bytes);
        let _ = row::decode_selected(&bytes);
    }
}
