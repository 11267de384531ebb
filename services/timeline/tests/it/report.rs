//! Events report every settled chunk.

use std::collections::BTreeSet;

use herald_mesh::{consumers, streams};
use herald_model::{Lane, PostId};
use herald_proto::EVENT_CHUNKS_MAX;

use crate::harness::{World, users};

/// More than one group commit of the store and one event can hold.
const CHUNKS: u32 = 300;

#[tokio::test(flavor = "multi_thread")]
async fn chunks_settled_together_share_events() {
    let world = World::start().await;
    let post = PostId(7);
    let chunks: Vec<_> = (0..CHUNKS).map(|n| users([1 + 2 * n, 2 + 2 * n])).collect();
    let publishing = chunks.iter().map(|chunk| world.publish(post, chunk));
    let sequences = futures::future::join_all(publishing).await;
    let last = sequences.into_iter().max().unwrap();
    let consumer = consumers::timeline(Lane::Normal);
    world.settled(streams::TIMELINE, consumer, last).await;

    let events = world.events().await;
    assert!(events.len() < CHUNKS as usize, "{}", events.len());
    assert!(events.iter().all(|event| event.chunks.len() <= EVENT_CHUNKS_MAX));
    let reported: Vec<_> = events.iter().flat_map(|event| &event.chunks).collect();
    assert_eq!(reported.len(), CHUNKS as usize);
    let ids: BTreeSet<u64> = reported.iter().map(|chunk| chunk.chunk_id).collect();
    assert_eq!(ids, chunks.iter().map(|chunk| chunk.chunk_id().0).collect());
    for chunk in reported {
        assert_eq!((chunk.post_id, chunk.delivered_count, chunk.revision), (7, 2, 1));
    }
}
