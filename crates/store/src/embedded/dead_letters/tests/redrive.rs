//! The times and counts of a redrive.

use super::*;

const fn after_seconds(seconds: i64) -> Timestamp {
    Timestamp(NOW.0 + seconds * 1_000_000)
}

#[tokio::test]
async fn a_redrive_ends_with_its_last_outcome() {
    let store = Store::new();
    let dead_letters = open(&store);
    fill(&dead_letters, 1..=3).await;
    let id = dead_letters
        .begin(&operation(OperationKind::Redrive), &versions(1..=3, 0))
        .await
        .unwrap()
        .id;
    let ended_at = async || {
        let operation = dead_letters.operation(id).await.unwrap().unwrap();
        operation.ended_at
    };
    dead_letters
        .claim(id, 3, 0, after_seconds(1), &fence(&dead_letters).await)
        .await
        .unwrap();
    // An outcome before the end doesn't end it.
    dead_letters
        .resolve(&versions([1], 1), after_seconds(2))
        .await
        .unwrap();
    assert_eq!(ended_at().await, None);
    dead_letters
        .finish(id, OperationState::Done, "", after_seconds(3))
        .await
        .unwrap();
    assert_eq!(ended_at().await, Some(after_seconds(3)));
    dead_letters
        .resolve(&versions([2], 1), after_seconds(8))
        .await
        .unwrap();
    assert_eq!(ended_at().await, Some(after_seconds(8)));
    // The failure was reported late: it was before the last outcome.
    let failed = Reopening {
        failed_at: after_seconds(6),
        ..failed_again(3, 1)
    };
    dead_letters.reopen(&failed).await.unwrap();
    assert_eq!(ended_at().await, Some(after_seconds(8)));
    let failed = Reopening {
        failed_at: after_seconds(9),
        ..failed_again(2, 1)
    };
    dead_letters.reopen(&failed).await.unwrap();
    assert_eq!(ended_at().await, Some(after_seconds(9)));
}

#[tokio::test]
async fn a_redrive_counts_the_dead_letters_whose_pushes_had_expired() {
    let mut store = Store::new();
    let dead_letters = open(&store);
    fill(&dead_letters, 1..=10).await;
    let begun = dead_letters
        .begin(&operation(OperationKind::Redrive), &versions(1..=10, 0))
        .await
        .unwrap();
    // The pushes of dead letter `n` expire after `n` seconds.
    let step = dead_letters
        .claim(begun.id, 6, 0, after_seconds(4), &fence(&dead_letters).await)
        .await
        .unwrap();
    assert_eq!((step.dead_letters.len(), step.operation.expired), (6, 4));
    let step = dead_letters
        .claim(begun.id, 6, 0, after_seconds(8), &fence(&dead_letters).await)
        .await
        .unwrap();
    assert_eq!((step.dead_letters.len(), step.operation.expired), (4, 6));
    for id in 1..=10 {
        dead_letters.reopen(&failed_again(id, 1)).await.unwrap();
    }

    drop(dead_letters);
    store.reopen();
    let dead_letters = open(&store);
    let stored = dead_letters.operation(begun.id).await.unwrap().unwrap();
    assert_eq!(stored.expired, 6);

    // With a new time to live, no push has expired.
    let request = NewOperation {
        push_ttl: Some(Duration::from_hours(1)),
        ..operation(OperationKind::Redrive)
    };
    let begun = dead_letters.begin(&request, &versions(1..=10, 1)).await.unwrap();
    let step = dead_letters
        .claim(begun.id, 10, 0, after_seconds(9), &fence(&dead_letters).await)
        .await
        .unwrap();
    assert_eq!((step.dead_letters.len(), step.operation.expired), (10, 0));
    let stored = dead_letters.operation(begun.id).await.unwrap().unwrap();
    assert_eq!(stored.what, request);

    // It stays when they fail again.
    for id in 1..=10 {
        dead_letters.reopen(&failed_again(id, 2)).await.unwrap();
    }
    drop(dead_letters);
    store.reopen();
    let dead_letters = open(&store);
    let begun = dead_letters
        .begin(&operation(OperationKind::Redrive), &versions(1..=10, 2))
        .await
        .unwrap();
    let step = dead_letters
        .claim(begun.id, 10, 0, after_seconds(100), &fence(&dead_letters).await)
        .await
        .unwrap();
    assert_eq!((step.dead_letters.len(), step.operation.expired), (10, 0));
    let extended_to = Some(after_seconds(9 + 3_600));
    assert!(
        step.dead_letters
            .iter()
            .all(|dead_letter| dead_letter.pushes_expire_at == extended_to)
    );
}

#[tokio::test]
async fn a_claim_without_the_lease_is_refused() {
    let store = Store::new();
    let dead_letters = open(&store);
    fill(&dead_letters, 1..=3).await;
    let begun = dead_letters
        .begin(&operation(OperationKind::Redrive), &versions(1..=3, 0))
        .await
        .unwrap();
    let old = fence(&dead_letters).await;
    let new = fence(&dead_letters).await;
    let claim = async |fence| dead_letters.claim(begun.id, 3, 0, after_seconds(1), fence).await;
    assert_eq!(claim(&old).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(claim(&new).await.unwrap().dead_letters.len(), 3);
}
