//! What the ledger has of one chunk can't be read.

use herald_mesh::TopologyConfig;
use herald_model::{PostId, Recipients, UserId};
use tempfile::TempDir;

use crate::harness::{Herald, local, numbers, open};

/// The first post that is accepted.
const ILL: PostId = PostId(1);

/// A directory with a store in which the outcome of the push chunk of a and b can't be read, as a broken disk leaves it.
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
    // An outcome of the push channel.
    let key = [&ILL.0.to_be_bytes()[..], &[1, 1], &chunk.0.to_be_bytes()].concat();
    rows.insert(key, [0xff]).unwrap();
    records.persist(fjall::PersistMode::SyncAll).unwrap();
    data
}

/// Who of the chunk has had its push can't be told, so nobody is sent it again. The next chunk is sent.
#[tokio::test]
async fn a_chunk_whose_outcome_is_corrupt_is_given_up_and_holds_up_nothing() {
    let data = with_corrupt_outcome().await;
    let mut herald = Box::pin(Herald::prepare_in(data, local(), TopologyConfig::default())).await;
    let mut users = Vec::new();
    for name in ["a", "b"] {
        let user = herald.user(name).await;
        herald.webhook(user, name).await;
        users.push(user);
    }
    herald.serve();
    let ill = herald.post("hello").await;
    assert_eq!(ill, ILL);
    let ill = herald.push(ill, &users).await;
    let sound = herald.post("hello again").await;
    let sound = herald.push(sound, &users).await;
    herald.acknowledged(ill.sequence).await;
    assert_eq!(numbers(herald.settled(sound).await), [2, 0, 0, 0, 0]);
    assert!(herald.received().values().all(|count| *count == 1));
    let reasons = herald.reasons().await;
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    let reason = "the store failed: a row of the ledger is malformed (attempt 10, the last for a fault)";
    assert!(reasons[0].contains(reason), "{reasons:?}");
}
