//! A store with rows of every kind.

use std::time::Duration;

use herald_model::{Channel, DeviceId, PostId, Recipients, UserId, UserKey, time::Timestamp};
use herald_store::{
    Archived, DeviceFailure, DeviceRetry, ErasedCounts, FailedRecipient, FollowAction, Forgotten,
    OutcomeDetails, PendingRecipient, PushFailure, Stores, SuppressedReason, embedded::Embedded,
};

use crate::{
    DAY,
    posts::{LOUD, QUIET, follow, mixed, post, publish, publish_new, set, settle},
    records::{fill_accounts, fill_dead_letters, fill_totals},
    world::World,
};

/// Number of users.
pub(crate) const USERS: u32 = 300;

/// Fills the embedded store of a world, and closes it.
pub(crate) async fn fill_source(world: &World) {
    let store = Embedded::open(&world.from()).unwrap();
    fill(&store.stores()).await;
    store.close().unwrap();
}

/// Fills a store with rows of every kind.
pub(crate) async fn fill(stores: &Stores) {
    let ids: Vec<_> = (1..=USERS)
        .map(|user| UserId::new(format!("user-{user}")).unwrap())
        .collect();
    stores.users.intern(&ids).await.unwrap();
    let now = Timestamp::now();

    // What is older than the retained history of follows.
    follow(stores, 3, 10..250, QUIET).await;
    follow(stores, 3, 40..60, LOUD).await;
    follow(stores, 4, [7, 9], QUIET).await;
    // Past the retention of posts.
    let created = Archived::Created(post(1, 3, now.minus(40 * DAY)));
    stores.posts.archive(&[created]).await.unwrap();
    for id in 2..=20 {
        let created = Archived::Created(post(id, 3, now.minus(2 * DAY)));
        stores.posts.archive(&[created]).await.unwrap();
        publish(stores, id, 3, &set([])).await;
    }
    // Old and undelivered: two are pending, one is dead.
    let created = Archived::Created(post(21, 4, now.minus(2 * DAY)));
    stores.posts.archive(&[created]).await.unwrap();
    publish(stores, 21, 4, &set([7, 9])).await;
    settle(
        stores,
        21,
        Channel::Timeline,
        set([7, 9]).chunk_id(),
        mixed(set([]), set([9]), OutcomeDetails::default()),
    )
    .await;
    stores
        .retention
        .trim(now.plus(Duration::from_hours(2)))
        .await
        .unwrap();

    // Changes of the retained history.
    follow(stores, 3, 60..70, FollowAction::Unfollow).await;
    publish_new(stores, 30, 3).await;
    follow(stores, 3, 50..55, FollowAction::Follow { notify: Some(false) }).await;
    follow(stores, 3, (60..65).chain(260..280), LOUD).await;
    publish_new(stores, 31, 3).await;
    follow(stores, 3, [62, 261], FollowAction::Unfollow).await;
    follow(stores, 3, [62], QUIET).await;
    follow(stores, 5, 1..=USERS, LOUD).await;
    follow(stores, 5, 1..=USERS, FollowAction::Unfollow).await;
    follow(stores, 6, [1, 2, 3], LOUD).await;
    publish_new(stores, 32, 3).await;
    publish_new(stores, 33, 6).await;

    // Planned and not archived yet, partly delivered.
    publish(stores, 34, 3, &set([10, 11])).await;
    stores
        .posts
        .archive(&[
            Archived::Deleted {
                post: PostId(31),
                at: now,
            },
            Archived::Deleted {
                post: PostId(99),
                at: now,
            },
        ])
        .await
        .unwrap();
    // A backfill that is on timelines, and one that is not.
    let backfilled = [PostId(18), PostId(19), PostId(30)];
    stores
        .ledger
        .record_backfill(&backfilled, &set([261, 280]))
        .await
        .unwrap();
    for post in backfilled {
        let done = stores.timelines.deliver(post, set([261, 280])).await.unwrap();
        done.durable.await.unwrap();
    }
    stores
        .ledger
        .record_backfill(&[PostId(30), PostId(33)], &set([299]))
        .await
        .unwrap();
    fill_pushes(stores).await;
    fill_erasures(stores).await;
    fill_accounts(stores).await;
    fill_totals(stores).await;
    fill_dead_letters(stores).await;
}

/// An outcome with all details, and a claim that is lost.
async fn fill_pushes(stores: &Stores) {
    let plan = stores.ledger.audit(PostId(32)).await.unwrap().unwrap();
    let chunk = plan
        .chunks
        .iter()
        .find(|chunk| chunk.channel == Channel::Push)
        .unwrap();
    let users: Vec<UserKey> = chunk.recipients.iter().collect();
    let failure = PushFailure::new("web_push status 429", "push.example");
    let mut waiting = PendingRecipient::new(users[0]);
    waiting.done = vec![DeviceId(1)];
    waiting.waiting = vec![DeviceRetry {
        device: DeviceId(2),
        attempts: 3,
        next_at: Timestamp::now(),
        failure: failure.clone(),
    }];
    let details = OutcomeDetails {
        generation: 2,
        expires_at: Some(Timestamp::now().plus(DAY)),
        pending: vec![waiting],
        suppressed: vec![(SuppressedReason::Muted, Recipients::from_sorted([users[1]]))],
        failed: vec![FailedRecipient {
            user: users[2],
            generation: 1,
            failures: vec![DeviceFailure {
                device: None,
                failure,
            }],
        }],
    };
    let outcome = mixed(
        Recipients::from_sorted([users[3]]),
        Recipients::from_sorted([users[2]]),
        details,
    );
    settle(stores, 32, Channel::Push, chunk.chunk, outcome).await;
    stores
        .ledger
        .claim(PostId(32), Channel::Push, chunk.chunk, 1, DAY)
        .await
        .unwrap();
}

/// An erasure that runs, and one that is complete and after which a post came; an erased text, and an erased timeline.
async fn fill_erasures(stores: &Stores) {
    let now = Timestamp::now();
    let begin = async |user: &str| {
        let id = UserId::new(user).unwrap();
        let begun = stores.erasures.begin(&id, "ops", now).await.unwrap();
        begun.unwrap()
    };
    begin("user-200").await;
    let first = begin("user-201").await;
    let complete = first.id;
    let counts = ErasedCounts {
        posts: 1,
        follows: 2,
        devices: 3,
        timeline_entries: 4,
        messages: 5,
        dead_letters: 6,
    };
    stores.erasures.add(complete, &counts).await.unwrap();
    let forgotten = Forgotten {
        at: now,
        last_post: PostId(20),
    };
    stores
        .erasures
        .record_forgotten(complete, &forgotten)
        .await
        .unwrap();
    stores.erasures.complete(complete, now).await.unwrap();
    let again = stores
        .erasures
        .begin_again(first.user, PostId(21), "archive", now)
        .await;
    assert!(again.unwrap().is_some());
    let removed = stores.timelines.erase(UserKey(200)).await.unwrap();
    assert!(removed > 0);
    let deleted = Archived::Deleted {
        post: PostId(20),
        at: now,
    };
    stores.posts.archive(&[deleted]).await.unwrap();
    assert_eq!(stores.posts.erase_texts(&[PostId(20)]).await.unwrap(), 1);
}
