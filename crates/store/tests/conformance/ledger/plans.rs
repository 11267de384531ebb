//! Plans: the first one of a slice is recorded, and every later call returns it.

use herald_model::{Channel, FollowVersion};
use herald_store::SlicePlan;

use super::{POST, counts, delivered, plan_chunk, write_plan};
use crate::{
    engine::Engine,
    sample::{plan, set},
};

/// The plan of an attempt at slice 0 that reads other followers, at another version, with another configuration.
fn other_attempt() -> SlicePlan {
    SlicePlan {
        version: FollowVersion(9),
        ..plan(POST, 0, true, &[(Channel::Timeline, &set(5..=40))])
    }
}

pub async fn planning_a_slice_again_returns_the_recorded_plan<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    assert_eq!(ledger.counts(POST).await.unwrap(), None);
    let listed = ledger
        .recipients(POST, Channel::Push, None, None, 10)
        .await
        .unwrap();
    assert_eq!(listed, []);
    let (timeline, push) = (set(1..=10), [set(1..=4), set(5..=10)]);
    let chunks = [
        (Channel::Timeline, &timeline),
        (Channel::Push, &push[0]),
        (Channel::Push, &push[1]),
    ];
    let first = plan(POST, 0, false, &chunks);
    assert_eq!(write_plan(&*ledger, first.clone()).await, first);
    let next = plan(POST, 1, true, &[(Channel::Timeline, &set(11..=30))]);
    assert_eq!(write_plan(&*ledger, next.clone()).await, next);
    let before = counts(&*ledger).await;
    assert_eq!(write_plan(&*ledger, other_attempt()).await, first);
    assert_eq!(counts(&*ledger).await, before);
    drop(ledger);
    engine.reopen().await;

    for ledger in [engine.stores().ledger, engine.peer().await.ledger] {
        assert_eq!(write_plan(&*ledger, other_attempt()).await, first);
        let audited = ledger.audit(POST).await.unwrap().unwrap();
        let versions: Vec<_> = audited.slices.iter().map(|slice| slice.version).collect();
        assert_eq!(versions, [Some(FollowVersion(1)); 2]);
    }
}

pub async fn an_empty_plan_is_recorded_too<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    let empty = plan(POST, 0, true, &[]);
    assert_eq!(write_plan(&*ledger, empty.clone()).await, empty);
    assert_eq!(write_plan(&*ledger, other_attempt()).await, empty);
    let counts = counts(&*ledger).await;
    assert!(counts.planned && counts.timeline.targeted == 0);
}

pub async fn of_concurrent_attempts_one_plans_and_all_return_its_plan<E: Engine>(engine: &mut E) {
    let both = [engine.stores().ledger, engine.peer().await.ledger];
    let calls = (1..=16_u32).map(|n| {
        let ledger = both[n as usize % 2].clone();
        tokio::spawn(async move {
            let (timeline, push) = (set(1..=n + 1), set(1..=n));
            let attempt = SlicePlan {
                version: FollowVersion(n.into()),
                ..plan(
                    POST,
                    0,
                    true,
                    &[(Channel::Timeline, &timeline), (Channel::Push, &push)],
                )
            };
            ledger.plan(attempt).await.unwrap()
        })
    });
    let plans: Vec<_> = futures::future::join_all(calls)
        .await
        .into_iter()
        .map(|call| call.unwrap())
        .collect();
    assert!(plans.iter().all(|plan| *plan == plans[0]), "{plans:?}");
    let counts = counts(&*both[0]).await;
    let planned = |index: usize| u64::from(plans[0].chunks[index].recipients.len());
    assert_eq!(
        (counts.timeline.targeted, counts.push.targeted),
        (planned(0), planned(1))
    );
}

pub async fn settled_chunks_stay_settled_when_the_slice_is_planned_again<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    let (a, b) = (set(1..=10), set(11..=30));
    write_plan(
        &*ledger,
        plan(POST, 0, false, &[(Channel::Timeline, &a), (Channel::Push, &a)]),
    )
    .await;
    ledger.settle(&delivered(Channel::Timeline, &a, 5)).await.unwrap();
    let before = counts(&*ledger).await;
    write_plan(&*ledger, plan(POST, 0, true, &[(Channel::Timeline, &b)])).await;
    assert_eq!(counts(&*ledger).await, before);
    assert!(!before.planned);
    write_plan(&*ledger, plan(POST, 1, true, &[(Channel::Timeline, &b)])).await;
    let now = counts(&*ledger).await;
    assert!(now.planned);
    let timeline = (
        now.timeline.targeted,
        now.timeline.delivered,
        now.timeline.pending,
    );
    assert_eq!(timeline, (30, 10, 20));
    assert_eq!((now.push.targeted, now.push.pending), (10, 10));
}

pub async fn chunks_of_65_536_recipients_are_kept<E: Engine>(engine: &mut E) {
    let ledger = engine.stores().ledger;
    // Far apart, so that each takes five bytes in an encoding of differences.
    let big = set((0..65_536).map(|n| 1 + n * 65_000));
    plan_chunk(&*ledger, Channel::Push, &big).await;
    let settled = super::outcome(&big, &[1, 2, 3, 4, 1]);
    super::settle(&*ledger, &big, settled.clone(), 1).await;
    drop(ledger);
    engine.reopen().await;
    let ledger = engine.stores().ledger;
    let again = write_plan(&*ledger, other_attempt()).await;
    assert!(again.chunks[0].recipients == big);
    let recorded = ledger
        .outcome(POST, Channel::Push, big.chunk_id())
        .await
        .unwrap()
        .unwrap();
    assert!(recorded.outcome == settled);
    let push = counts(&*ledger).await.push;
    assert_eq!(push.targeted, 65_536);
    assert_eq!(
        push.delivered + push.suppressed + push.expired + push.dead,
        65_536
    );
}
