//! Erasures on a real nats-server and the embedded store. What the services would do is done here by hand.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails at the first unexpected error"
)]

mod world;

use std::time::Duration;

use herald_mesh::streams;
use herald_model::{PostId, UserKey};
use herald_store::{DeadLetterId, DeadLetterState, ErasedCounts, ErrorKind, OperationKind};

use crate::world::{AUTHOR, LIMIT, OTHER, World};

#[tokio::test(flavor = "multi_thread")]
async fn the_messages_and_dead_letters_of_one_author_are_removed() {
    let world = World::start().await;
    let posts = [world.post(AUTHOR, true).await, world.post(AUTHOR, false).await];
    let other = world.post(OTHER, true).await;
    for post in posts.iter().chain([&other]) {
        world.redrive(post).await;
        world.dead_letter(post).await;
    }
    world.settle_all();

    let erasure = world.begin().await;
    tokio::time::timeout(LIMIT, world.user_data.erase(&erasure))
        .await
        .unwrap()
        .unwrap();

    // The deletions of the posts follow the posts.
    for (stream, kept) in [
        (streams::POSTS, vec![other.id.0, 4, 5]),
        (streams::REDRIVE, vec![3]),
        (streams::DLQ, vec![3]),
    ] {
        assert_eq!(world.sequences(stream).await, kept, "{stream}");
    }
    let stores = &world.user_data.stores;
    let ids: Vec<PostId> = posts.iter().chain([&other]).map(|post| post.id).collect();
    let left = stores.posts.get(&ids).await.unwrap();
    let erased: Vec<_> = left
        .iter()
        .map(|post| post.as_ref().unwrap().is_erased())
        .collect();
    assert_eq!(erased, [true, true, false]);
    let dead_letters = [1, 2, 3].map(DeadLetterId);
    let dead_letters = stores.dead_letters.get(&dead_letters).await.unwrap();
    let states: Vec<_> = dead_letters.into_iter().map(|one| one.unwrap().state).collect();
    let (open, discarded) = (DeadLetterState::Open, DeadLetterState::Discarded);
    assert_eq!(states, [discarded, discarded, open]);
    let operations = stores.dead_letters.operations(None, 10).await.unwrap();
    assert!(!operations.is_empty());
    for operation in operations {
        assert_eq!(
            (operation.what.kind, operation.what.actor.as_str()),
            (OperationKind::Discard, "operator")
        );
        assert!(!String::from_utf8_lossy(&operation.what.selection).contains(AUTHOR));
    }
    let complete = stores.erasures.get(erasure.id).await.unwrap().unwrap();
    assert!(complete.completed_at.is_some() && complete.user_id.is_none());
    let counts = ErasedCounts {
        posts: 2,
        messages: 6,
        dead_letters: 2,
        ..ErasedCounts::default()
    };
    assert_eq!(complete.counts, counts);

    // From its beginning, as after a crash: nothing is left to do.
    world.user_data.erase(&erasure).await.unwrap();
    assert_eq!(stores.erasures.get(erasure.id).await.unwrap().unwrap(), complete);
    assert_eq!(world.sequences(streams::POSTS).await, [other.id.0, 4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_is_cancelled_again_and_again_ends() {
    let world = World::start().await;
    for _ in 0..40 {
        let post = world.post(AUTHOR, true).await;
        world.dead_letter(&post).await;
    }
    world.settle_all();
    let erasure = world.begin().await;
    let mut limit = Duration::from_millis(1);
    let mut cancelled = 0;
    while tokio::time::timeout(limit, world.user_data.erase(&erasure))
        .await
        .is_err()
    {
        cancelled += 1;
        limit = limit * 3 / 2;
    }
    assert!(cancelled > 0);
    assert_eq!(world.sequences(streams::DLQ).await, Vec::<u64>::new());
    let left = world.sequences(streams::POSTS).await;
    assert!(left.iter().all(|sequence| *sequence > 40), "{left:?}");
    let ids: Vec<_> = (1..=40).map(PostId).collect();
    for post in world.user_data.stores.posts.get(&ids).await.unwrap() {
        assert!(post.unwrap().is_erased());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_waits_until_each_consumer_has_settled() {
    let world = World::start().await;
    world.post(AUTHOR, true).await;
    world.settle(|consumer| consumer.name != "fanout-normal");
    let erasure = world.begin().await;
    let mut erasing = std::pin::pin!(world.user_data.erase(&erasure));
    // The post is deleted at once.
    tokio::select! {
        ended = &mut erasing => panic!("it did not wait: {ended:?}"),
        () = world.until_deleted(PostId(1)) => {}
    }
    assert!(world.sequences(streams::POSTS).await.contains(&1));
    world.settle(|consumer| consumer.name == "fanout-normal");
    tokio::time::timeout(LIMIT, erasing).await.unwrap().unwrap();
    assert!(!world.sequences(streams::POSTS).await.contains(&1));
    assert_eq!(world.sequences(streams::ADVISORIES).await, Vec::<u64>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_post_that_was_archived_for_a_new_user_is_erased() {
    let world = World::start().await;
    let first = world.post(AUTHOR, true).await;
    let erasure = world.begin().await;
    // A gateway that can't reach the store accepts posts without a key; the archive gives them that of a new user.
    let damaged = world.post(AUTHOR, false).await;
    let of_new = world.post(AUTHOR, true).await;
    assert_eq!(of_new.author, UserKey(first.author.0 + 1));
    let world = world.damage(damaged.id).damage(of_new.id);
    world.settle_all();
    tokio::time::timeout(LIMIT, world.user_data.erase(&erasure))
        .await
        .unwrap()
        .unwrap();
    let posts = &world.user_data.stores.posts;
    let erased = posts.get(&[damaged.id]).await.unwrap().remove(0).unwrap();
    assert!(erased.is_erased() && erased.deleted_at.is_some(), "{erased:?}");
    assert_eq!(erased.author, of_new.author);
    let untouched = posts.get(&[of_new.id]).await.unwrap_err();
    assert_eq!(untouched.kind(), ErrorKind::Corrupt, "a post of the new user");
    assert_eq!(world.sequences(streams::POSTS).await, [of_new.id.0, 4]);
}
