//! Finding letters.

use super::*;

#[tokio::test]
async fn letters_are_found_by_each_filter_and_in_pages() {
    let store = Store::new();
    let letters = open(&store);
    let other = Letter {
        origin: Origin {
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
        ..letter(4)
    };
    letters
        .insert(&[letter(1), letter(2), letter(3), other, letter(5)])
        .await
        .unwrap();
    let any = LetterFilter::default;
    for (filter, expected) in [
        (any(), &[1, 2, 3, 4, 5][..]),
        (
            LetterFilter {
                stream: Some("PUSH".into()),
                ..any()
            },
            &[1, 2, 3, 5],
        ),
        (
            LetterFilter {
                consumer: Some("archive".into()),
                ..any()
            },
            &[4],
        ),
        (
            LetterFilter {
                cause: Some(Cause::Unreadable),
                ..any()
            },
            &[4],
        ),
        (
            LetterFilter {
                reason: Some("able thing".into()),
                ..any()
            },
            &[4],
        ),
        (
            LetterFilter {
                group: Some(7),
                ..any()
            },
            &[1, 2, 3, 5],
        ),
        (
            LetterFilter {
                author: Some(UserKey(3)),
                ..any()
            },
            &[1, 2, 3, 5],
        ),
        (
            LetterFilter {
                author: Some(UserKey(4)),
                ..any()
            },
            &[],
        ),
        (
            LetterFilter {
                post: Some(PostId(2)),
                ..any()
            },
            &[2],
        ),
        (
            LetterFilter {
                channel: Some(Channel::Timeline),
                ..any()
            },
            &[],
        ),
        (
            LetterFilter {
                state: Some(LetterState::Open),
                group: Some(7),
                ..any()
            },
            &[1, 2, 3, 5],
        ),
        (
            LetterFilter {
                state: Some(LetterState::Discarded),
                ..any()
            },
            &[],
        ),
        (
            LetterFilter {
                since: Some(letter(2).last_failed_at),
                until: Some(letter(5).last_failed_at),
                ..any()
            },
            &[2, 3, 4],
        ),
    ] {
        assert_eq!(
            ids(&letters, &filter, Order::OldestFirst).await,
            expected,
            "{filter:?}"
        );
        let mut reversed = ids(&letters, &filter, Order::NewestFirst).await;
        reversed.reverse();
        assert_eq!(reversed, expected, "{filter:?}");
    }

    // A page goes on where the last ended, although the set has changed: 3 is in it no longer, 6 is new.
    let open = LetterFilter {
        state: Some(LetterState::Open),
        ..any()
    };
    let first = letters.scan(&open, Order::OldestFirst, None, 2).await.unwrap();
    assert_eq!(first.next, Some(LetterId(2)));
    fill(&letters, 6..=6).await;
    let redrive = letters
        .begin(&act(ActKind::Redrive), &chosen([3], 0))
        .await
        .unwrap();
    letters.claim(redrive.id, 1, 0, NOW).await.unwrap();
    let second = letters
        .scan(&open, Order::OldestFirst, first.next, 100)
        .await
        .unwrap();
    let second: Vec<_> = second.letters.iter().map(|letter| letter.id.0).collect();
    assert_eq!(second, [4, 5, 6]);
    let older = letters
        .scan(&open, Order::NewestFirst, Some(LetterId(4)), 100)
        .await
        .unwrap();
    let older: Vec<_> = older.letters.iter().map(|letter| letter.id.0).collect();
    assert_eq!(older, [2, 1]);

    let groups = letters.groups(&any()).await.unwrap();
    assert_eq!(groups.len(), 2);
    assert_eq!(
        groups[0],
        LetterGroup {
            group: 7,
            kind: "push".into(),
            cause: Cause::Terminated,
            reason: "push gave up: webhook status 503".into(),
            letters: 5,
            first_failed_at: letter(1).first_failed_at,
            last_failed_at: letter(6).last_failed_at,
            example: LetterId(6),
        }
    );
    assert_eq!((groups[1].group, groups[1].letters), (9, 1));
}

#[tokio::test]
async fn a_scan_looks_at_so_many_and_goes_on() {
    let store = Store::new();
    let letters = open(&store);
    fill(&letters, 1..=(SCAN_LETTERS as u64 + 5)).await;
    let rare = LetterFilter {
        post: Some(PostId(SCAN_LETTERS as u64 + 3)),
        ..LetterFilter::default()
    };
    let first = letters.scan(&rare, Order::OldestFirst, None, 10).await.unwrap();
    assert_eq!((first.letters.len(), first.next.is_some()), (0, true));
    let second = letters
        .scan(&rare, Order::OldestFirst, first.next, 10)
        .await
        .unwrap();
    assert_eq!((second.letters.len(), second.next), (1, None));
}
