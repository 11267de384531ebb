//! Values that several modules use.

use std::{collections::BTreeSet, time::Duration};

use herald_model::{
    Channel, FollowVersion, Lane, Post, PostId, PushContent, Recipients, UserId, UserKey, time::Timestamp,
};
use herald_store::{ChunkPlan, Fence, SlicePlan, Stores};

/// Recipients with these keys.
pub fn set(users: impl IntoIterator<Item = u32>) -> Recipients {
    let users: BTreeSet<_> = users.into_iter().collect();
    Recipients::from_sorted(users.into_iter().map(UserKey))
}

/// User ids `user-{n}`.
pub fn user_ids(range: std::ops::Range<u32>) -> Vec<UserId> {
    range.map(|n| UserId::new(format!("user-{n}")).unwrap()).collect()
}

/// The author of all sample posts.
pub const AUTHOR: UserKey = UserKey(3);

/// A post.
pub fn post(id: u64, request_id: &str, accepted_at: Timestamp) -> Post {
    Post {
        id: PostId(id),
        author: AUTHOR,
        author_id: UserId::new("author").unwrap(),
        request_id: request_id.into(),
        text: format!("the text of {id}"),
        links: vec!["https://a".into(), "https://b".into()],
        media_urls: vec!["https://c".into()],
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

/// The plan of a slice.
pub fn plan(post: PostId, slice: u32, last: bool, chunks: &[(Channel, &Recipients)]) -> SlicePlan {
    let chunks = chunks.iter().map(|(channel, recipients)| ChunkPlan {
        channel: *channel,
        recipients: Recipients::clone(recipients),
    });
    SlicePlan {
        post,
        author: AUTHOR,
        slice,
        version: FollowVersion(1),
        chunks: chunks.collect(),
        next_after: (!last).then_some(UserKey(1_000)),
    }
}

/// A lease that lasts longer than a test.
pub async fn lease(stores: &Stores, name: &str) -> Fence {
    let lease = stores.leases.acquire(name, "the test", Duration::from_hours(1));
    lease.await.unwrap().expect("nobody has the lease")
}

/// Waits until a call gives a value.
pub async fn eventually<T>(what: &str, mut call: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(value) = call().await {
            return value;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what}: not within a minute"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
