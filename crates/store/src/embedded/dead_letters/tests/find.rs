//! Tests of filters, pages and groups of dead letters.

use super::*;
use crate::{DEAD_LETTER_GROUPS_MAX, DeadLetterGroup};

#[tokio::test]
async fn dead_letters_are_found_by_each_filter_and_in_pages() {
    let store = Store::new();
    let dead_letters = open(&store);
    let other = DeadLetter {
        origin: MessageRef {
            stream: "POSTS".into(),
            consumer: "archive".into(),
            sequence: 4,
        },
        kind: "archive".into(),
        cause: Cause::Unreadable,
        reason: "Undecodable THING".into(),
        group: 9,
        group_reason: "undecodable thing".into(),
        post: None,
        author: None,
        channel: None,
        chunk: None,
        ..dead_letter(4)
    };
    dead_letters
        .insert(&[
            dead_letter(1),
            dead_letter(2),
            dead_letter(3),
            other,
            dead_letter(5),
        ])
        .await
        .unwrap();
    let any = DeadLetterFilter::default;
    for (filter, expected) in [
        (any(), &[1, 2, 3, 4, 5][..]),
        (
            DeadLetterFilter {
                stream: Some("PUSH".into()),
                ..any()
            },
            &[1, 2, 3, 5],
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
        (
            DeadLetterFilter {
                reason: Some("able thing".into()),
                ..any()
            },
            &[4],
        ),
        (
            DeadLetterFilter {
                group: Some(7),
                ..any()
            },
            &[1, 2, 3, 5],
        ),
        (
            DeadLetterFilter {
                author: Some(UserKey(3)),
                ..any()
            },
            &[1, 2, 3, 5],
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
                state: Some(DeadLetterState::Open),
                group: Some(7),
                ..any()
            },
            &[1, 2, 3, 5],
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
        assert_eq!(
            ids(&dead_letters, &filter, Order::OldestFirst).await,
            expected,
            "{filter:?}"
        );
        let mut reversed = ids(&dead_letters, &filter, Order::NewestFirst).await;
        reversed.reverse();
        assert_eq!(reversed, expected, "{filter:?}");
    }

    // The next page continues after the previous one although the set has changed: 3 no longer matches, 6 is new.
    let open = DeadLetterFilter {
        state: Some(DeadLetterState::Open),
        ..any()
    };
    let first = dead_letters
        .scan(&open, Order::OldestFirst, None, 2)
        .await
        .unwrap();
    assert_eq!(first.next, Some(DeadLetterId(2)));
    fill(&dead_letters, 6..=6).await;
    let redrive = dead_letters
        .begin(&operation(OperationKind::Redrive), &versions([3], 0))
        .await
        .unwrap();
    dead_letters
        .claim(redrive.id, 1, 0, NOW, &fence(&dead_letters).await)
        .await
        .unwrap();
    let second = dead_letters
        .scan(&open, Order::OldestFirst, first.next, 100)
        .await
        .unwrap();
    let second: Vec<_> = second
        .dead_letters
        .iter()
        .map(|dead_letter| dead_letter.id.0)
        .collect();
    assert_eq!(second, [4, 5, 6]);
    let older = dead_letters
        .scan(&open, Order::NewestFirst, Some(DeadLetterId(4)), 100)
        .await
        .unwrap();
    let older: Vec<_> = older
        .dead_letters
        .iter()
        .map(|dead_letter| dead_letter.id.0)
        .collect();
    assert_eq!(older, [2, 1]);

    let groups = dead_letters.groups(&any()).await.unwrap();
    assert_eq!(groups.dead_letters(), 6);
    let groups = groups.into_largest_first();
    assert_eq!(groups.len(), 2);
    assert_eq!(
        groups[0],
        DeadLetterGroup {
            group: 7,
            kind: "push".into(),
            cause: Cause::Terminated,
            reason: "push failed: webhook status 503".into(),
            dead_letters: 5,
            first_failed_at: dead_letter(1).first_failed_at,
            last_failed_at: dead_letter(6).last_failed_at,
            example: DeadLetterId(6),
        }
    );
    assert_eq!((groups[1].group, groups[1].dead_letters), (9, 1));
}

#[tokio::test]
async fn a_scan_reads_a_bounded_number_and_continues() {
    let store = Store::new();
    let dead_letters = open(&store);
    fill(&dead_letters, 1..=(SCAN_DEAD_LETTERS_MAX as u64 + 5)).await;
    let rare = DeadLetterFilter {
        post: Some(PostId(SCAN_DEAD_LETTERS_MAX as u64 + 3)),
        ..DeadLetterFilter::default()
    };
    let first = dead_letters
        .scan(&rare, Order::OldestFirst, None, 10)
        .await
        .unwrap();
    assert_eq!((first.dead_letters.len(), first.next.is_some()), (0, true));
    let second = dead_letters
        .scan(&rare, Order::OldestFirst, first.next, 10)
        .await
        .unwrap();
    assert_eq!((second.dead_letters.len(), second.next), (1, None));
}

#[test]
fn dead_letters_of_too_many_groups_are_only_counted() {
    let mut groups = DeadLetterGroups::default();
    let last = DEAD_LETTER_GROUPS_MAX as u64 + 1;
    for id in (1..=last).chain([1]) {
        groups.add(DeadLetter {
            group: id,
            ..dead_letter(id)
        });
    }
    assert_eq!(groups.dead_letters(), last + 1);
    let groups = groups.into_largest_first();
    assert_eq!(groups.len(), DEAD_LETTER_GROUPS_MAX);
    assert_eq!((groups[0].group, groups[0].dead_letters), (1, 2));
    assert!(groups.iter().all(|group| group.group != last));
}

#[tokio::test]
async fn a_malformed_row_does_not_hide_other_dead_letters() {
    let store = Store::new();
    let dead_letters = open(&store);
    let all: Vec<_> = (1..=3).map(dead_letter).collect();
    dead_letters.insert(&all).await.unwrap();
    let tables = &dead_letters.tables;
    tables.dead_letters.insert(2_u64.to_be_bytes(), [0xff]).unwrap();
    let open_ones = DeadLetterFilter {
        state: Some(DeadLetterState::Open),
        ..DeadLetterFilter::default()
    };
    for filter in [DeadLetterFilter::default(), open_ones] {
        let page = dead_letters
            .scan(&filter, Order::OldestFirst, None, 10)
            .await
            .unwrap();
        let found: Vec<u64> = page.dead_letters.iter().map(|one| one.id.0).collect();
        assert_eq!((found, page.next), (vec![1, 3], None));
        let groups = dead_letters.groups(&filter).await.unwrap();
        assert_eq!(groups.dead_letters(), 2);
    }
    let error = dead_letters.get(&[DeadLetterId(2)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}
