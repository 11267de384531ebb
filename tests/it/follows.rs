//! Which followers receive a post, and what the backfill of a follow delivers.

use std::time::Duration;

use harness::{Clients, Herald, Options, until};
use herald_proto::v1;

use crate::HERALD;

const LIMIT: Duration = Duration::from_secs(30);

async fn follow(clients: &Clients, follower: &str, author: &str) {
    let follow = v1::Follow {
        follower_id: follower.into(),
        author_id: author.into(),
        notify: None,
    };
    clients
        .graph()
        .follow(v1::FollowRequest { follow: Some(follow) })
        .await
        .unwrap();
}

async fn unfollow(clients: &Clients, follower: &str, author: &str) {
    let request = v1::UnfollowRequest {
        follower_id: follower.into(),
        author_id: author.into(),
    };
    clients.graph().unfollow(request).await.unwrap();
}

async fn post(clients: &Clients, author: &str, text: &str) -> u64 {
    let request = v1::SubmitPostRequest {
        author_id: author.into(),
        text: text.into(),
        ..Default::default()
    };
    clients
        .posts()
        .submit_post(request)
        .await
        .unwrap()
        .into_inner()
        .post_id
}

async fn timeline(clients: &Clients, user: &str) -> Vec<u64> {
    let request = v1::ListTimelineRequest {
        user_id: user.into(),
        ..Default::default()
    };
    let answer = clients
        .timelines()
        .list_timeline(request)
        .await
        .unwrap()
        .into_inner();
    answer
        .entries
        .into_iter()
        .filter_map(|entry| entry.post)
        .map(|post| post.post_id)
        .collect()
}

/// Waits until a post has no pending deliveries.
async fn wait_settled(clients: &Clients, post_id: u64) {
    until("the post is settled", LIMIT, || async move {
        let answer = clients
            .deliveries()
            .get_delivery(v1::GetDeliveryRequest { post_id })
            .await
            .unwrap()
            .into_inner();
        answer.planned && answer.channels.iter().all(|channel| channel.pending_count == 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn follows_and_unfollows_take_effect_with_their_answers() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    follow(&clients, "ann", "bob").await;
    let first = post(&clients, "bob", "first").await;
    // Fan-out pins the followers: an unfollow before that counts for the first post, too.
    wait_settled(&clients, first).await;
    unfollow(&clients, "ann", "bob").await;
    follow(&clients, "cid", "bob").await;
    let second = post(&clients, "bob", "second").await;
    wait_settled(&clients, second).await;
    assert_eq!(
        timeline(&clients, "ann").await,
        [first],
        "ann has the post accepted while she followed, not the later one"
    );
    until("the backfill of cid is on the timeline", LIMIT, || async {
        timeline(&clients, "cid").await == [second, first]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_follow_backfills_the_newest_twenty_posts() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    let mut posts = Vec::new();
    for n in 0..25 {
        posts.push(post(&clients, "bob", &format!("post {n}")).await);
    }
    follow(&clients, "ann", "bob").await;
    let newest: Vec<u64> = posts.iter().rev().take(20).copied().collect();
    until("the backfill is on the timeline", LIMIT, || async {
        timeline(&clients, "ann").await == newest
    })
    .await;
    // A repeated follow delivers nothing twice.
    follow(&clients, "ann", "bob").await;
    follow(&clients, "ann", "bob").await;
    let last = post(&clients, "bob", "last").await;
    wait_settled(&clients, last).await;
    let mut all = vec![last];
    all.extend(&newest);
    until("the last post is on the timeline once", LIMIT, || async {
        timeline(&clients, "ann").await == all
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_backfill_delivers_nothing_newer_than_its_follow() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    let first = post(&clients, "bob", "first").await;
    let broker = herald.broker().await;
    let pause = |until: &'static str| {
        let subject = "$JS.API.CONSUMER.PAUSE.TIMELINE.timeline-low";
        broker.request(subject, format!("{{\"pause_until\":\"{until}\"}}").into())
    };
    pause("2100-01-01T00:00:00Z").await.unwrap();
    follow(&clients, "ann", "bob").await;
    unfollow(&clients, "ann", "bob").await;
    // More posts than one backfill delivers, none of them for ann.
    for n in 0..21 {
        post(&clients, "bob", &format!("after the unfollow {n}")).await;
    }
    pause("2000-01-01T00:00:00Z").await.unwrap();
    until("the backfill is on the timeline", LIMIT, || async {
        !timeline(&clients, "ann").await.is_empty()
    })
    .await;
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;
    assert_eq!(timeline(&clients, "ann").await, [first]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_post_and_a_muted_author_are_not_shown() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    follow(&clients, "ann", "bob").await;
    follow(&clients, "ann", "eve").await;
    let deleted = post(&clients, "bob", "oops").await;
    let remaining = post(&clients, "bob", "better").await;
    let muted = post(&clients, "eve", "noise").await;
    for id in [deleted, remaining, muted] {
        wait_settled(&clients, id).await;
    }
    assert_eq!(timeline(&clients, "ann").await, [muted, remaining, deleted]);
    let request = v1::DeletePostRequest {
        post_id: deleted,
        author_id: "bob".into(),
        any_author: false,
    };
    clients.posts().delete_post(request).await.unwrap();
    let request = v1::UpdatePreferencesRequest {
        user_id: "ann".into(),
        mute_author_ids: vec!["eve".into()],
        ..Default::default()
    };
    clients.preferences().update_preferences(request).await.unwrap();
    assert_eq!(
        timeline(&clients, "ann").await,
        [remaining],
        "deletion and mute take effect with their answers"
    );
    let refused = clients
        .posts()
        .get_post(v1::GetPostRequest { post_id: deleted })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_id_returns_the_same_post() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    follow(&clients, "ann", "bob").await;
    let request = v1::SubmitPostRequest {
        request_id: uuid::Uuid::new_v4().to_string(),
        author_id: "bob".into(),
        text: "once".into(),
        ..Default::default()
    };
    let first = clients
        .posts()
        .submit_post(request.clone())
        .await
        .unwrap()
        .into_inner();
    let again = clients
        .posts()
        .submit_post(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(!first.duplicate && again.duplicate);
    assert_eq!(first.post_id, again.post_id);
    // The same request id of another author is another post.
    let other = v1::SubmitPostRequest {
        author_id: "eve".into(),
        ..request
    };
    let other = clients.posts().submit_post(other).await.unwrap().into_inner();
    assert_ne!(other.post_id, first.post_id);
    wait_settled(&clients, first.post_id).await;
    assert_eq!(timeline(&clients, "ann").await, [first.post_id]);
}

/// The gateway holds each post for some time before it is stored. Follows and unfollows that are answered meanwhile come
/// before the post is accepted.
#[tokio::test(flavor = "multi_thread")]
async fn follows_and_unfollows_answered_before_a_post_is_stored_count() {
    let options = Options {
        variables: vec![("FAILPOINTS".into(), "gateway.publish=return(delay 2000)".into())],
        ..Options::default()
    };
    let herald = Herald::start(HERALD, options).await;
    let clients = herald.clients().await;
    for round in 0..5 {
        let [author, leaver, joiner] = ["author", "leaver", "joiner"].map(|name| format!("{name} {round}"));
        follow(&clients, &leaver, &author).await;
        let submitting = tokio::spawn({
            let (clients, author) = (clients.clone(), author.clone());
            async move { post(&clients, &author, "stored late").await }
        });
        // The post is in the gateway by the time that this other follow is answered.
        follow(&clients, &joiner, "somebody").await;
        follow(&clients, &joiner, &author).await;
        unfollow(&clients, &leaver, &author).await;
        let stored_later = !submitting.is_finished();
        let post_id = submitting.await.unwrap();
        wait_settled(&clients, post_id).await;
        if !stored_later {
            // A slow machine: the post was stored before the answers.
            continue;
        }
        assert_eq!(timeline(&clients, &joiner).await, [post_id]);
        assert_eq!(timeline(&clients, &leaver).await, [0; 0]);
        return;
    }
    panic!("no post was stored after the answers");
}

async fn notifies(clients: &Clients, follower: &str) -> Option<bool> {
    let request = v1::ListFollowingRequest {
        follower_id: follower.into(),
        ..Default::default()
    };
    let page = clients
        .graph()
        .list_following(request)
        .await
        .unwrap()
        .into_inner();
    page.follows.first().and_then(|follow| follow.notify)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_follow_or_an_import_does_not_say_stays_as_it_is() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "ann bob\neve bob\n").unwrap();
    let path = file.path().to_str().unwrap();
    let both = async || (notifies(&clients, "ann").await, notifies(&clients, "eve").await);

    let first = herald.cli(&["follow", "ann", "bob", "--notify"]).await;
    assert_eq!(
        (&first["changed"], &first["notify"]),
        (&true.into(), &true.into())
    );
    let summary = herald.cli(&["import", "follows", path]).await;
    assert_eq!(
        (&summary["imported_count"], &summary["unchanged_count"]),
        (&1.into(), &1.into())
    );
    assert_eq!(both().await, (Some(true), Some(false)));
    let again = herald.cli(&["follow", "ann", "bob"]).await;
    assert_eq!(
        (&again["changed"], &again["notify"]),
        (&false.into(), &true.into())
    );
    assert_eq!(both().await, (Some(true), Some(false)));

    herald.cli(&["import", "follows", path, "--notify", "all"]).await;
    assert_eq!(both().await, (Some(true), Some(true)));
    let off = herald.cli(&["follow", "ann", "bob", "--no-notify"]).await;
    assert_eq!((&off["changed"], &off["notify"]), (&true.into(), &false.into()));
    herald.cli(&["import", "follows", path, "--notify", "none"]).await;
    assert_eq!(both().await, (Some(false), Some(false)));
}
