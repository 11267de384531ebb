//! Dead letters and operations on them.

mod find;
mod operations;

use std::time::Duration;

use herald_model::{Channel, ChunkId, Lane, PostId, UserKey, time::Timestamp};
use herald_store::{
    Cause, DeadLetter, DeadLetterFilter, DeadLetterId, DeadLetterState, DeadLetterVersion, DeadLetters,
    ErrorKind, Fence, MessageRef, NewOperation, Operation, OperationId, OperationKind, Order, Payload, Step,
    Stores,
};

pub use self::{find::*, operations::*};
use crate::{
    engine::Engine,
    sample::{eventually, lease},
};

const NOW: Timestamp = Timestamp(1_700_000_000_000_000);

pub(crate) fn dead_letter(id: u64) -> DeadLetter {
    let at = NOW.plus(Duration::from_secs(id));
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
        first_failed_at: at,
        last_failed_at: at,
        stored_at: at,
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
        pushes_expire_at: Some(at),
    }
}

async fn fill(dead_letters: &dyn DeadLetters, ids: std::ops::RangeInclusive<u64>) {
    let all: Vec<_> = ids.map(dead_letter).collect();
    assert!(dead_letters.insert(&all).await.unwrap().iter().all(|one| one.new));
}

fn operation(kind: OperationKind) -> NewOperation {
    NewOperation {
        kind,
        actor: "ops@host".into(),
        at: NOW,
        selection: bytes::Bytes::from_static(b"all of\0them\xff"),
        excluded: 0,
        rate_max: 0,
        failures_max: 100,
        push_ttl: None,
        target: None,
    }
}

pub(crate) fn versions(ids: impl IntoIterator<Item = u64>, round: u32) -> Vec<DeadLetterVersion> {
    let version = |id| DeadLetterVersion {
        id: DeadLetterId(id),
        round,
    };
    ids.into_iter().map(version).collect()
}

/// The lease of the process that redrives.
pub(crate) async fn redrive_lease(stores: &Stores) -> Fence {
    lease(stores, "redrive").await
}

pub(crate) async fn begin(
    dead_letters: &dyn DeadLetters,
    kind: OperationKind,
    of: &[DeadLetterVersion],
) -> Operation {
    dead_letters.begin(&operation(kind), of).await.unwrap()
}

pub(crate) async fn claim(
    stores: &Stores,
    id: OperationId,
    limit: usize,
    at: Timestamp,
    fence: &Fence,
) -> Step {
    stores.dead_letters.claim(id, limit, 0, at, fence).await.unwrap()
}

async fn get(dead_letters: &dyn DeadLetters, id: u64) -> DeadLetter {
    dead_letters
        .get(&[DeadLetterId(id)])
        .await
        .unwrap()
        .remove(0)
        .unwrap()
}

/// The ids of all that match, in pages of `limit`.
pub(crate) async fn ids(
    dead_letters: &dyn DeadLetters,
    filter: &DeadLetterFilter,
    order: Order,
    limit: usize,
) -> Vec<u64> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let page = dead_letters.scan(filter, order, after, limit).await.unwrap();
        assert!(page.dead_letters.len() <= limit);
        all.extend(page.dead_letters.iter().map(|dead_letter| dead_letter.id.0));
        after = page.next;
        if after.is_none() {
            return all;
        }
    }
}

/// Waits for a count, which may be 10 s old.
pub(crate) async fn count_is(dead_letters: &dyn DeadLetters, state: DeadLetterState, expected: u64) {
    eventually(
        &format!("{expected} dead letters in state {state:?}"),
        async || (dead_letters.count(state).await.unwrap() == expected).then_some(()),
    )
    .await;
}

pub async fn an_id_is_never_given_to_a_second_message<E: Engine>(engine: &mut E) {
    let dead_letters = engine.stores().dead_letters;
    dead_letters.insert(&[dead_letter(1)]).await.unwrap();
    let other = DeadLetter {
        id: DeadLetterId(1),
        ..dead_letter(2)
    };
    let refused = dead_letters.insert(&[other]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    assert_eq!(get(&*dead_letters, 1).await, dead_letter(1));
    count_is(&*dead_letters, DeadLetterState::Open, 1).await;
}

pub async fn repeated_inserts_of_a_message_make_one_dead_letter<E: Engine>(engine: &mut E) {
    let again = DeadLetter {
        origin: dead_letter(1).origin,
        ..dead_letter(3)
    };
    {
        let dead_letters = engine.stores().dead_letters;
        let batch = [dead_letter(1), dead_letter(2), again.clone()];
        let inserted = dead_letters.insert(&batch).await.unwrap();
        let results: Vec<_> = inserted.iter().map(|one| (one.id.0, one.new)).collect();
        assert_eq!(results, [(1, true), (2, true), (1, false)]);
    }
    engine.reopen().await;
    let dead_letters = engine.stores().dead_letters;
    let inserted = dead_letters.insert(&[again]).await.unwrap();
    assert_eq!((inserted[0].id.0, inserted[0].new), (1, false));
    // Fields that the store sets.
    let changed = DeadLetter {
        state: DeadLetterState::Resolved,
        round: 4,
        operations: vec![OperationId(9)],
        ..dead_letter(4)
    };
    dead_letters.insert(&[changed]).await.unwrap();
    let four = get(&*dead_letters, 4).await;
    assert_eq!(
        (four.state, four.round, four.operations),
        (DeadLetterState::Open, 0, vec![])
    );
    assert_eq!(get(&*dead_letters, 1).await, dead_letter(1));
    let some = dead_letters
        .get(&[DeadLetterId(3), DeadLetterId(2)])
        .await
        .unwrap();
    assert_eq!(some, [None, Some(dead_letter(2))]);
    count_is(&*dead_letters, DeadLetterState::Open, 3).await;
}
