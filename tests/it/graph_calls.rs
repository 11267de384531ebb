//! BatchFollow and IsFollowing.

use harness::{Clients, Herald, Options};
use herald_proto::v1;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::HERALD;

fn follow(follower: &str, author: &str, notify: bool) -> v1::Follow {
    v1::Follow {
        follower_id: follower.into(),
        author_id: author.into(),
        notify: Some(notify),
    }
}

async fn batch(
    clients: &Clients,
    follows: Vec<v1::Follow>,
) -> Result<v1::BatchFollowResponse, tonic::Status> {
    let request = v1::BatchFollowRequest { follows };
    Ok(clients.graph().batch_follow(request).await?.into_inner())
}

/// Whether a user follows an author, and with pushes.
async fn is_following(clients: &Clients, follower: &str, author: &str) -> (bool, bool) {
    let request = v1::IsFollowingRequest {
        follower_id: follower.into(),
        author_id: author.into(),
    };
    let response = clients.graph().is_following(request).await.unwrap().into_inner();
    (response.following, response.notify)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_follows_is_applied_as_a_whole() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    let follows = vec![
        follow("ann", "bob", true),
        follow("ann", "eve", false),
        follow("joe", "bob", false),
    ];
    let applied = batch(&clients, follows.clone()).await.unwrap();
    assert_eq!((applied.changed_count, applied.unchanged_count), (3, 0));
    assert_eq!(is_following(&clients, "ann", "bob").await, (true, true));
    assert_eq!(is_following(&clients, "ann", "eve").await, (true, false));
    assert_eq!(is_following(&clients, "bob", "ann").await, (false, false));
    assert_eq!(is_following(&clients, "joe", "eve").await, (false, false));
    assert_eq!(is_following(&clients, "ann", "nobody").await, (false, false));

    let again = [follows, vec![follow("ann", "joe", false)]].concat();
    let applied = batch(&clients, again).await.unwrap();
    assert_eq!((applied.changed_count, applied.unchanged_count), (1, 3));

    // One invalid follow refuses the batch.
    let mixed = vec![
        follow("joe", "eve", false),
        follow("", "bob", false),
        follow("ann", "ann", false),
    ];
    let refused = batch(&clients, mixed).await.unwrap_err();
    let violations = refused.get_details_bad_request().unwrap().field_violations;
    let fields: Vec<_> = violations
        .iter()
        .map(|violation| violation.field.as_str())
        .collect();
    assert_eq!(fields, ["follows[1].follower_id", "follows[2].author_id"]);
    assert_eq!(is_following(&clients, "joe", "eve").await, (false, false));
    for count in [0, 1_001] {
        let refused = batch(&clients, vec![follow("ann", "bob", true); count])
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("1 to 1000 follows"), "{refused:?}");
    }
}
