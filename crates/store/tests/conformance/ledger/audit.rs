//! Reading all rows of a post, and all posts.

use herald_model::{Channel, FollowVersion, PostId, Recipients};
use herald_store::{ChunkState, Outcome, PlannedSlice, RecordedOutcome};

use super::{POST, delivered, outcome, settle, write_plan};
use crate::{
    engine::Engine,
    sample::{plan, set},
};

pub async fn an_audit_reads_all_rows_of_a_post<E: Engine>(engine: &mut E) {
    let (chunk, other) = (set(1..=5), set(6..=9));
    {
        let ledger = engine.stores().ledger;
        let chunks = [(Channel::Timeline, &chunk), (Channel::Push, &chunk)];
        write_plan(&*ledger, plan(POST, 0, false, &chunks)).await;
        write_plan(&*ledger, plan(POST, 300, true, &[(Channel::Timeline, &other)])).await;
        ledger
            .settle(&delivered(Channel::Timeline, &other, 8))
            .await
            .unwrap();
        // Twice: the second attempt of a backfill.
        for _ in 0..2 {
            ledger
                .record_backfill(&[PostId(3), POST], &set([70, 80]))
                .await
                .unwrap();
        }
    }
    engine.reopen().await;
    let ledger = engine.stores().ledger;
    let mut audited = ledger.audit(POST).await.unwrap().unwrap();
    let slice = |index, last| PlannedSlice {
        index,
        last,
        version: Some(FollowVersion(1)),
    };
    assert_eq!(audited.slices, [slice(0, false), slice(300, true)]);
    assert!(!audited.backfilled.is_empty());
    assert!(
        audited
            .backfilled
            .iter()
            .all(|recipients| *recipients == set([70, 80]))
    );
    audited
        .chunks
        .sort_by_key(|chunk| (chunk.channel, chunk.recipients.iter().next()));
    let state = |channel, recipients: &Recipients, recorded| ChunkState {
        channel,
        chunk: recipients.chunk_id(),
        recipients: recipients.clone(),
        recorded,
    };
    let recorded = RecordedOutcome {
        revision: 1,
        outcome: Outcome::Delivered { count: 4 },
    };
    let expected = [
        state(Channel::Timeline, &chunk, None),
        state(Channel::Timeline, &other, Some(recorded)),
        state(Channel::Push, &chunk, None),
    ];
    assert_eq!(audited.chunks, expected);
    assert_eq!(audited.unplanned, []);
    let backfilled = ledger.audit(PostId(3)).await.unwrap().unwrap();
    assert!(backfilled.slices.is_empty() && backfilled.chunks.is_empty());
    assert_eq!(ledger.audit(PostId(5)).await.unwrap(), None);
    assert_eq!(ledger.counts(PostId(3)).await.unwrap(), None);

    // An outcome of a chunk that no slice has planned.
    settle(&*ledger, &other, outcome(&other, &[1]), 1).await;
    let audited = ledger.audit(POST).await.unwrap().unwrap();
    assert_eq!(audited.unplanned[0].1, other.chunk_id());
}

pub async fn posts_are_listed_once<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    let chunk = set(1..=4);
    for post in [2, 300, 70_000, 5, 1 << 20, 1 << 40] {
        write_plan(&*ledger, plan(PostId(post), 0, false, &[(Channel::Push, &chunk)])).await;
        write_plan(
            &*ledger,
            plan(PostId(post), 1, true, &[(Channel::Timeline, &chunk)]),
        )
        .await;
    }
    ledger
        .record_backfill(&[PostId(4), PostId(300)], &set([9]))
        .await
        .unwrap();
    let posts = async |after: Option<u64>, limit| {
        let posts = ledger.posts(after.map(PostId), limit).await.unwrap();
        posts.into_iter().map(|post| post.0).collect::<Vec<_>>()
    };
    assert_eq!(posts(None, 3).await, [2, 4, 5]);
    assert_eq!(posts(Some(5), 3).await, [300, 70_000, 1 << 20]);
    assert_eq!(posts(Some(1 << 20), 9).await, [1 << 40]);
    assert_eq!(posts(Some(u64::MAX), 3).await, [0; 0]);
}
