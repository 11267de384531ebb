//! Tests of scans and groups of dead letters.

use super::*;
use crate::DEAD_LETTER_GROUPS_MAX;

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
