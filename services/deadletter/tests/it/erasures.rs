//! Erasures of users.

use herald_model::{PostId, UserId, time::Timestamp};
use herald_proto::v1;

use crate::harness::{Harness, begin_redrive, in_state, until};

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_an_erasure_discards_are_counted() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    harness.create_dead_letters(&service.client, 1..=3).await;
    assert_eq!(harness.metric("herald_deadletter_discarded_total"), 0);
    // Another process has begun it.
    let erasures = &harness.stores.erasures;
    let author = UserId::new("author").unwrap();
    let yesterday = Timestamp::now().minus(std::time::Duration::from_hours(24));
    let begun = erasures.begin(&author, "ops", yesterday).await.unwrap().unwrap();
    until(async || harness.metric("herald_deadletter_erasure_oldest_seconds") >= 86_400).await;
    until(async || {
        let now = erasures.get(begun.id).await.unwrap().unwrap();
        now.completed_at.is_some()
    })
    .await;
    until(async || harness.metric("herald_deadletter_discarded_total") == 3).await;
    let discarded = in_state(&service.client, v1::DeadLetterState::Discarded).await;
    assert_eq!(discarded.len(), 3);
    until(async || harness.metric("herald_deadletter_erasure_oldest_seconds") == 0).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_dead_letters_are_counted_before_the_erasure_ends() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    harness.stop_worker();
    harness.create_dead_letters(&service.client, 1..=1).await;
    begin_redrive(&service.client).await;
    let redriving = async || {
        in_state(&service.client, v1::DeadLetterState::Redriving)
            .await
            .len()
    };
    until(async || redriving().await == 1).await;
    harness.create_dead_letters(&service.client, 2..=3).await;
    let erasures = &harness.stores.erasures;
    let author = UserId::new("author").unwrap();
    let begun = erasures.begin(&author, "ops", Timestamp::now()).await.unwrap();
    // It waits for the redrive, and would be cancelled there by the end of the lease.
    until(async || harness.metric("herald_deadletter_discarded_total") == 2).await;
    let now = erasures.get(begun.unwrap().id).await.unwrap().unwrap();
    assert_eq!(now.completed_at, None);
    assert_eq!(redriving().await, 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_erasure_of_a_user_waits_for_the_first_one() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    harness.stop_worker();
    harness.create_dead_letters(&service.client, 1..=1).await;
    begin_redrive(&service.client).await;
    until(async || {
        let redriving = in_state(&service.client, v1::DeadLetterState::Redriving).await;
        redriving.len() == 1
    })
    .await;
    let erasures = &harness.stores.erasures;
    let [author, other] = ["author", "other"].map(|id| UserId::new(id).unwrap());
    harness
        .stores
        .users
        .intern(std::slice::from_ref(&other))
        .await
        .unwrap();
    let begin = async |user: &UserId| {
        let begun = erasures.begin(user, "ops", Timestamp::now()).await;
        begun.unwrap().unwrap()
    };
    // It waits for the redrive.
    let first = begin(&author).await;
    let is_forgotten = async |id| erasures.get(id).await.unwrap().unwrap().forgotten.is_some();
    until(async || is_forgotten(first.id).await).await;
    let late = erasures.begin_again(first.user, PostId(99), "archive", Timestamp::now());
    let second = late.await.unwrap().unwrap();
    // The runner has seen the second one when it completes a later one.
    let of_other = begin(&other).await;
    until(async || {
        let now = erasures.get(of_other.id).await.unwrap().unwrap();
        now.completed_at.is_some()
    })
    .await;
    assert!(!is_forgotten(second.id).await);
    service.stop().await;
}
