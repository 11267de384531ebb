//! Follows and published posts.

use std::time::Duration;

use herald_model::{
    Channel, ChunkId, Lane, Post, PostId, PushContent, Recipients, UserId, UserKey, time::Timestamp,
};
use herald_store::{
    Archived, ChunkPlan, ExpectedRevision, FollowAction, FollowChange, Outcome, OutcomeDetails, Settlement,
    SlicePlan, Stores,
};

pub(crate) fn set(users: impl IntoIterator<Item = u32>) -> Recipients {
    Recipients::from_sorted(users.into_iter().map(UserKey))
}

pub(crate) fn post(id: u64, author: u32, accepted_at: Timestamp) -> Post {
    Post {
        id: PostId(id),
        author: UserKey(author),
        author_id: UserId::new(format!("user-{author}")).unwrap(),
        request_id: format!("request\u{0}{id}"),
        text: format!("the text of {id}"),
        links: vec!["https://a".into()],
        media_urls: vec!["https://b".into()],
        lane: Lane::ALL[id as usize % 3],
        accepted_at,
        push_ttl: Duration::from_hours(1),
        push: PushContent {
            title: "title".into(),
            collapse_key: "key".into(),
            data: [("k".into(), "v".into())].into(),
        },
        deleted_at: None,
    }
}

pub(crate) async fn follow(
    stores: &Stores,
    author: u32,
    followers: impl IntoIterator<Item = u32>,
    action: FollowAction,
) {
    let changes: Vec<_> = followers
        .into_iter()
        .map(|follower| FollowChange {
            follower: UserKey(follower),
            author: UserKey(author),
            action,
        })
        .collect();
    stores.follows.apply(&changes).await.unwrap();
}

pub(crate) const QUIET: FollowAction = FollowAction::Follow { notify: None };
pub(crate) const LOUD: FollowAction = FollowAction::Follow { notify: Some(true) };

/// Plans a post to the followers of its author now, and delivers it to all but `undelivered`.
pub(crate) async fn publish(stores: &Stores, id: u64, author: u32, undelivered: &Recipients) {
    let page = stores
        .follows
        .followers(UserKey(author), None, None, 100_000)
        .await
        .unwrap();
    let mut chunks = vec![ChunkPlan {
        channel: Channel::Timeline,
        recipients: page.followers.clone(),
    }];
    if !page.notify.is_empty() {
        chunks.push(ChunkPlan {
            channel: Channel::Push,
            recipients: page.notify.clone(),
        });
    }
    let plan = SlicePlan {
        post: PostId(id),
        author: UserKey(author),
        slice: 0,
        version: page.version,
        chunks,
        next_after: None,
    };
    stores.ledger.plan(plan).await.unwrap();
    let delivered =
        Recipients::from_sorted(page.followers.iter().filter(|user| !undelivered.contains(*user)));
    if delivered.is_empty() {
        return;
    }
    let outcome = if undelivered.is_empty() {
        Outcome::Delivered {
            count: delivered.len(),
        }
    } else {
        mixed(
            delivered.clone(),
            Recipients::default(),
            OutcomeDetails::default(),
        )
    };
    let done = stores.timelines.deliver(PostId(id), delivered).await.unwrap();
    done.durable.await.unwrap();
    settle(stores, id, Channel::Timeline, page.followers.chunk_id(), outcome).await;
}

pub(crate) fn mixed(delivered: Recipients, dead: Recipients, details: OutcomeDetails) -> Outcome {
    Outcome::Mixed {
        delivered,
        suppressed: details
            .suppressed
            .first()
            .map(|(_, users)| users.clone())
            .unwrap_or_default(),
        expired: Recipients::default(),
        dead,
        details,
    }
}

pub(crate) async fn settle(stores: &Stores, post: u64, channel: Channel, chunk: ChunkId, outcome: Outcome) {
    let settlement = Settlement {
        post: PostId(post),
        channel,
        chunk,
        base: ExpectedRevision::Revision(0),
        outcome,
        at: Timestamp::now(),
        keep_claim: None,
    };
    stores.ledger.settle(&settlement).await.unwrap();
}

pub(crate) async fn publish_new(stores: &Stores, id: u64, author: u32) {
    let created = Archived::Created(post(id, author, Timestamp::now()));
    stores.posts.archive(&[created]).await.unwrap();
    publish(stores, id, author, &set([])).await;
}
