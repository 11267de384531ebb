mod find;

use std::time::Duration;

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

async fn ids(dead_letters: &EmbeddedDeadLetters, filter: &DeadLetterFilter, order: Order) -> Vec<u64> {
    let page = dead_letters.scan(filter, order, None, 1_000_000).await.unwrap();
    assert_eq!(page.next, None);
    page.dead_letters
        .iter()
        .map(|dead_letter| dead_letter.id.0)
        .collect()
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
