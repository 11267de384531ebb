//! What the ledger has of one chunk can't be read.

use herald_mesh::{consumers, streams};
use herald_model::{Channel, ChunkId, PostId, Recipients, UserId};
use herald_proto::v1::{DeadLetterState, RedriveState};
use tempfile::TempDir;

use crate::harness::{Harness, Verdict, dead_letters, everything, get, ids, in_state, open, redrive, until};

const ILL: u64 = 9;
const SOUND: u64 = 10;

/// A directory with a store in which the outcome of the push chunk of ann and bob can't be read, as a broken disk leaves
/// it.
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
    // An outcome of the push channel.
    let key = [&ILL.to_be_bytes()[..], &[1, 1], &chunk.0.to_be_bytes()].concat();
    rows.insert(key, [0xff]).unwrap();
    records.persist(fjall::PersistMode::SyncAll).unwrap();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_whose_outcome_is_corrupt_is_a_dead_letter_like_others() {
    let harness = Harness::start_in(with_corrupt_outcome().await).await;
    let service = harness.run().await;
    let client = &service.client;
    harness.tell(Verdict::Term(
        "the store failed: a row of the ledger is malformed",
    ));
    let ill = harness.plan(ILL, &["ann", "bob"]).await;
    harness
        .stores
        .ledger
        .outcome(PostId(ILL), Channel::Push, ChunkId(ill.chunk_id))
        .await
        .expect_err("it can't be read");
    harness.publish(&ill).await;
    harness.publish(&harness.plan(SOUND, &["ann", "bob"]).await).await;

    // Both are listed, and shown. Of the one nobody knows who has it.
    let mut all = dead_letters(client, 2).await;
    all.sort_by_key(|dead_letter| dead_letter.post_id);
    for dead_letter in &all {
        assert_eq!((dead_letter.recipient_count, dead_letter.owed_count), (2, 2));
        let shown = get(client, dead_letter.dead_letter_id).await;
        assert_eq!(shown.owed_user_ids, ["ann", "bob"]);
    }
    // It is done with, so it holds up no redrive.
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
        .counts(PostId(SOUND))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((counts.push.dead, counts.push.pending), (2, 0));

    // As long as it can't be read, it fails again; then it is done as any other.
    let again = redrive(client, ids([all[0].dead_letter_id]), None).await.unwrap();
    assert_eq!((again.state(), again.failed_count), (RedriveState::Done, 1));
    harness.tell(Verdict::Ack);
    let done = redrive(client, everything(), None).await.unwrap();
    assert_eq!((done.resolved_count, done.failed_count), (2, 0));
    assert_eq!(in_state(client, DeadLetterState::Open).await, [0; 0]);
    service.stop().await;
}
