//! A corrupt ledger row of one chunk.

use herald_mesh::TopologyConfig;
use herald_model::{PostId, Recipients, UserId};
use tempfile::TempDir;

use crate::harness::{Herald, local, numbers, open};

/// The first accepted post.
const CORRUPT: PostId = PostId(1);

/// Creates a store with a corrupt ledger row: the outcome of the push chunk with the users a and b.
async fn with_corrupt_outcome() -> TempDir {
    let data = tempfile::tempdir().unwrap();
    let store = open(&data);
    let ids = ["a", "b"].map(|user| UserId::new(user).unwrap());
    let mut keys = store.stores().users.intern(&ids).await.unwrap();
    keys.sort_unstable();
    let chunk = Recipients::from_sorted(keys).chunk_id();
    store.close().unwrap();
    drop(store);
    let records = fjall::Database::builder(data.path().join("store/records"))
        .open()
        .unwrap();
    let rows = records
        .keyspace("ledger", fjall::KeyspaceCreateOptions::default)
        .unwrap();
    // The key of an outcome of the push channel.
    let key = [&CORRUPT.0.to_be_bytes()[..], &[1, 1], &chunk.0.to_be_bytes()].concat();
    rows.insert(key, [0xff]).unwrap();
    records.persist(fjall::PersistMode::SyncAll).unwrap();
    data
}

/// The devices that already accepted the push are unknown, so nothing of the chunk is sent. The next chunk is sent.
#[tokio::test]
async fn a_chunk_with_a_corrupt_outcome_is_terminated_and_blocks_no_other_chunk() {
    let data = with_corrupt_outcome().await;
    let mut herald = Box::pin(Herald::prepare_in(data, local(), TopologyConfig::default())).await;
    let mut users = Vec::new();
    for name in ["a", "b"] {
        let user = herald.user(name).await;
        herald.webhook(user, name).await;
        users.push(user);
    }
    herald.serve();
    let corrupt = herald.post("hello").await;
    assert_eq!(corrupt, CORRUPT);
    let corrupt = herald.push(corrupt, &users).await;
    let intact = herald.post("hello again").await;
    let intact = herald.push(intact, &users).await;
    herald.acknowledged(corrupt.sequence).await;
    assert_eq!(numbers(herald.settled(intact).await), [2, 0, 0, 0, 0]);
    assert!(herald.received().values().all(|count| *count == 1));
    let reasons = herald.reasons().await;
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    let reason = "the store failed: a row of the ledger is malformed (attempt 10, permanent error)";
    assert!(reasons[0].contains(reason), "{reasons:?}");
}
