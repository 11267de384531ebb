//! Filters, groups and pages of dead letters.

use herald_model::{Channel, PostId, UserKey};
use herald_store::{
    Cause, DeadLetter, DeadLetterFilter, DeadLetterGroup, DeadLetterId, DeadLetterState, MessageRef,
    OperationKind, Order,
};

use super::{NOW, begin, claim, dead_letter, fill, get, ids, redrive_lease, versions};
use crate::engine::Engine;

pub async fn dead_letters_are_found_by_each_filter<E: Engine>(engine: &mut E) {
    let dead_letters = engine.stores().dead_letters;
    let other = DeadLetter {
        origin: MessageRef {
            stream: "POSTS".into(),
            consumer: "archive".into(),
            sequence: 4,
        },
        kind: "archive".into(),
        cause: Cause::Unreadable,
        reason: "Undecodable THING: 100% of_it \\ 'x'\u{0}".into(),
        group: u64::MAX,
        group_reason: "undecodable thing".into(),
        post: None,
        author: None,
        channel: None,
        chunk: None,
        lane: None,
        pushes_expire_at: None,
        ..dead_letter(4)
    };
    let all = [
        dead_letter(1),
        dead_letter(2),
        dead_letter(3),
        other.clone(),
        dead_letter(5),
    ];
    dead_letters.insert(&all).await.unwrap();
    assert_eq!(get(&*dead_letters, 4).await, other);
    let any = DeadLetterFilter::default;
    let reason = |part: &str| DeadLetterFilter {
        reason: Some(part.into()),
        ..any()
    };
    let pushes = &[1, 2, 3, 5][..];
    for (filter, expected) in [
        (any(), &[1, 2, 3, 4, 5][..]),
        (
            DeadLetterFilter {
                stream: Some("PUSH".into()),
                ..any()
            },
            pushes,
        ),
        (
            DeadLetterFilter {
                consumer: Some("archive".into()),
                ..any()
            },
            &[4],
        ),
        (
            DeadLetterFilter {
                cause: Some(Cause::Unreadable),
                ..any()
            },
            &[4],
        ),
        (reason("able thing"), &[4]),
        (reason("100% of_it \\ 'x'"), &[4]),
        // Nothing of a reason is a pattern.
        (reason("push%503"), &[]),
        (reason("webhook_status"), &[]),
        (
            DeadLetterFilter {
                group: Some(7),
                ..any()
            },
            pushes,
        ),
        (
            DeadLetterFilter {
                group: Some(u64::MAX),
                ..any()
            },
            &[4],
        ),
        (
            DeadLetterFilter {
                author: Some(UserKey(3)),
                ..any()
            },
            pushes,
        ),
        (
            DeadLetterFilter {
                author: Some(UserKey(4)),
                ..any()
            },
            &[],
        ),
        (
            DeadLetterFilter {
                post: Some(PostId(2)),
                ..any()
            },
            &[2],
        ),
        (
            DeadLetterFilter {
                channel: Some(Channel::Timeline),
                ..any()
            },
            &[],
        ),
        (
            DeadLetterFilter {
                channel: Some(Channel::Push),
                ..any()
            },
            pushes,
        ),
        (
            DeadLetterFilter {
                state: Some(DeadLetterState::Open),
                group: Some(7),
                ..any()
            },
            pushes,
        ),
        (
            DeadLetterFilter {
                state: Some(DeadLetterState::Discarded),
                ..any()
            },
            &[],
        ),
        (
            DeadLetterFilter {
                since: Some(dead_letter(2).last_failed_at),
                until: Some(dead_letter(5).last_failed_at),
                ..any()
            },
            &[2, 3, 4],
        ),
    ] {
        for limit in [1, 2, 100] {
            let found = ids(&*dead_letters, &filter, Order::OldestFirst, limit).await;
            assert_eq!(found, expected, "{filter:?}");
            let mut reversed = ids(&*dead_letters, &filter, Order::NewestFirst, limit).await;
            reversed.reverse();
            assert_eq!(reversed, expected, "{filter:?}");
        }
    }
    let groups = dead_letters.groups(&any()).await.unwrap();
    assert_eq!(groups.dead_letters(), 5);
    let groups = groups.into_largest_first();
    let largest = DeadLetterGroup {
        group: 7,
        kind: "push".into(),
        cause: Cause::Terminated,
        reason: "push failed: webhook status 503".into(),
        dead_letters: 4,
        first_failed_at: dead_letter(1).first_failed_at,
        last_failed_at: dead_letter(5).last_failed_at,
        example: DeadLetterId(5),
    };
    assert_eq!((groups.len(), &groups[0]), (2, &largest));
    assert_eq!((groups[1].group, groups[1].dead_letters), (u64::MAX, 1));
    let few = DeadLetterFilter {
        post: Some(PostId(2)),
        ..any()
    };
    assert_eq!(dead_letters.groups(&few).await.unwrap().dead_letters(), 1);
}

pub async fn pages_continue_although_the_set_changes<E: Engine>(engine: &mut E) {
    let stores = engine.stores();
    let (dead_letters, fence) = (&*stores.dead_letters, redrive_lease(&stores).await);
    fill(dead_letters, 1..=5).await;
    let open = DeadLetterFilter {
        state: Some(DeadLetterState::Open),
        ..DeadLetterFilter::default()
    };
    let first = dead_letters
        .scan(&open, Order::OldestFirst, None, 2)
        .await
        .unwrap();
    assert_eq!(first.next, Some(DeadLetterId(2)));
    // 3 no longer matches, 6 is new.
    fill(dead_letters, 6..=6).await;
    let redrive = begin(dead_letters, OperationKind::Redrive, &versions([3], 0)).await;
    claim(&stores, redrive.id, 1, NOW, &fence).await;
    let page = async |order, after| {
        let page = dead_letters.scan(&open, order, after, 100).await.unwrap();
        page.dead_letters
            .iter()
            .map(|dead_letter| dead_letter.id.0)
            .collect::<Vec<_>>()
    };
    assert_eq!(page(Order::OldestFirst, first.next).await, [4, 5, 6]);
    assert_eq!(page(Order::NewestFirst, Some(DeadLetterId(4))).await, [2, 1]);
}
