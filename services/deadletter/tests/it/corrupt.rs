//! A malformed outcome of a chunk in the ledger.

use herald_mesh::{consumers, streams};
use herald_model::{Channel, ChunkId, PostId, Recipients, UserId};
use herald_proto::v1::{DeadLetterOperationState, DeadLetterState};
use tempfile::TempDir;

use crate::harness::{
    Harness, Verdict, dead_letters, get, in_state, open, redrive, select_all, select_ids, until,
};

const CORRUPT_POST: u64 = 9;
const INTACT_POST: u64 = 10;

/// A directory with a store in which the outcome of the push chunk of ann and bob is malformed, as after a disk error.
async fn with_corrupt_outcome() -> TempDir {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let ids = ["ann", "bob"].map(|user| UserId::new(user).unwrap());
    let mut keys = store.stores().users.intern(&ids).await.unwrap();
    keys.sort_unstable();
    let chunk = Recipients::from_sorted(keys).chunk_id();
    store.close().unwrap();
    drop(store);
    let records = fjall::Database::builder(dir.path().join("data/records"))
        .open()
        .unwrap();
    let rows = records
        .keyspace("ledger", fjall::KeyspaceCreateOptions::default)
        .unwrap();
    // The key of an outcome of the push channel.
    let key = [&CORRUPT_POST.to_be_bytes()[..], &[1, 1], &chunk.0.to_be_bytes()].concat();
    rows.insert(key, [0xff]).unwrap();
    records.persist(fjall::PersistMode::SyncAll).unwrap();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_with_a_malformed_outcome_becomes_a_dead_letter_and_can_be_redriven() {
    let harness = Harness::start_in(with_corrupt_outcome().await).await;
    let service = harness.run().await;
    let client = &service.client;
    harness.set_verdict(Verdict::Term(
        "the store failed: a row of the ledger is malformed",
    ));
    let corrupt = harness.plan(CORRUPT_POST, &["ann", "bob"]).await;
    harness
        .stores
        .ledger
        .outcome(PostId(CORRUPT_POST), Channel::Push, ChunkId(corrupt.chunk_id))
        .await
        .expect_err("the outcome is malformed");
    harness.publish(&corrupt).await;
    harness
        .publish(&harness.plan(INTACT_POST, &["ann", "bob"]).await)
        .await;

    // Both dead letters are listed. All recipients of the chunk with the malformed outcome count as undelivered.
    let mut all = dead_letters(client, 2).await;
    all.sort_by_key(|dead_letter| dead_letter.post_id);
    for dead_letter in &all {
        assert_eq!(
            (dead_letter.recipient_count, dead_letter.undelivered_count),
            (2, 2)
        );
        let shown = get(client, dead_letter.dead_letter_id).await;
        assert_eq!(shown.undelivered_user_ids, ["ann", "bob"]);
    }
    // Its DLQ entry is acknowledged, so that it doesn't block redrives.
    let last = harness.mesh.last_sequence(streams::DLQ).await.unwrap();
    let floor = async || {
        harness
            .mesh
            .ack_floor(streams::DLQ, consumers::DEAD_LETTERS)
            .await
    };
    until(async || floor().await.unwrap() >= last).await;
    assert_eq!(last, 2);
    let counts = harness
        .stores
        .ledger
        .counts(PostId(INTACT_POST))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((counts.push.dead, counts.push.pending), (2, 0));

    // The redrive fails as long as the worker fails, then succeeds.
    let again = redrive(client, select_ids([all[0].dead_letter_id]), None)
        .await
        .unwrap();
    assert_eq!(
        (again.state(), again.failed_count),
        (DeadLetterOperationState::Done, 1)
    );
    harness.set_verdict(Verdict::Ack);
    let done = redrive(client, select_all(), None).await.unwrap();
    assert_eq!((done.resolved_count, done.failed_count), (2, 0));
    assert_eq!(in_state(client, DeadLetterState::Open).await, [0; 0]);
    service.stop().await;
}
