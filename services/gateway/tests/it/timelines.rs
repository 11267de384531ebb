//! ListTimeline.

use herald_proto::v1::{self, watch_timeline_response::Event};
use tonic::Code;

use crate::harness::{World, fields, submit, with_timeout};

async fn list(world: &World, user: &str, page_size: i32, token: &str) -> v1::ListTimelineResponse {
    let request = v1::ListTimelineRequest {
        user_id: user.into(),
        page_size,
        page_token: token.into(),
    };
    world
        .timelines()
        .list_timeline(request)
        .await
        .unwrap()
        .into_inner()
}

fn ids(response: &v1::ListTimelineResponse) -> Vec<u64> {
    response
        .entries
        .iter()
        .map(|entry| entry.post.as_ref().unwrap().post_id)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_newest_first_and_skip_hidden_posts() {
    let world = World::start().await;
    for i in 0..10 {
        let author = if i % 3 == 0 { "loud" } else { "quiet" };
        let post = world.post(author, &format!("post {i}")).await;
        world.deliver(post, "reader", false).await;
    }
    let first = list(&world, "reader", 4, "").await;
    assert_eq!(ids(&first), [10, 9, 8, 7]);
    let second = list(&world, "reader", 4, &first.next_page_token).await;
    assert_eq!(ids(&second), [6, 5, 4, 3]);
    let third = list(&world, "reader", 4, &second.next_page_token).await;
    assert_eq!((ids(&third), third.next_page_token.as_str()), (vec![2, 1], ""));
    let exact = list(&world, "reader", 10, "").await;
    assert_eq!((ids(&exact).len(), exact.next_page_token.as_str()), (10, ""));
    assert_eq!(exact.entries[0].post.as_ref().unwrap().text, "post 9");

    let mute = v1::UpdatePreferencesRequest {
        user_id: "reader".into(),
        mute_author_ids: vec!["loud".into()],
        ..Default::default()
    };
    world.preferences().update_preferences(mute).await.unwrap();
    world
        .posts()
        .delete_post(v1::DeletePostRequest {
            post_id: 9,
            any_author: true,
            ..Default::default()
        })
        .await
        .unwrap();
    // The author of posts 1, 4, 7, 10 is muted; post 9 is deleted.
    let first = list(&world, "reader", 3, "").await;
    assert_eq!(ids(&first), [8, 6, 5]);
    let second = list(&world, "reader", 3, &first.next_page_token).await;
    assert_eq!((ids(&second), second.next_page_token.as_str()), (vec![3, 2], ""));
    // A page whose first posts are hidden is filled with the next posts.
    let one = list(&world, "reader", 1, "").await;
    assert_eq!(ids(&one), [8]);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_long_posts_stays_below_the_message_limit_of_clients() {
    let world = World::start().await;
    let text = "😀".repeat(10_000);
    let posts: Vec<_> = {
        let submit = (0..120).map(|_| v1::SubmitPostsRequest {
            post: Some(submit("107", &text)),
        });
        let answer = world
            .posts()
            .submit_posts(futures::stream::iter(submit.collect::<Vec<_>>()))
            .await;
        answer.unwrap().into_inner().post_ids
    };
    // A resume with the token of an empty timeline must send every post.
    let watch = |token: String| v1::WatchTimelineRequest {
        user_id: "reader".into(),
        resume_token: token,
        ..Default::default()
    };
    let mut answers = world
        .timelines()
        .watch_timeline(watch(String::new()))
        .await
        .unwrap()
        .into_inner();
    let token = answers.message().await.unwrap().unwrap().resume_token;
    drop(answers);
    for post in &posts {
        world.deliver(*post, "reader", false).await;
    }

    let first = list(&world, "reader", 200, "").await;
    assert!(
        (50..120).contains(&first.entries.len()),
        "{}",
        first.entries.len()
    );
    let second = list(&world, "reader", 200, &first.next_page_token).await;
    assert_eq!(second.next_page_token, "");
    let mut listed = [ids(&first), ids(&second)].concat();
    listed.reverse();
    assert_eq!(listed, posts);

    let mut answers = world
        .timelines()
        .watch_timeline(watch(token))
        .await
        .unwrap()
        .into_inner();
    let mut got = Vec::new();
    while got.len() < posts.len() {
        match with_timeout("a response", answers.message())
            .await
            .unwrap()
            .unwrap()
            .event
        {
            Some(Event::Snapshot(snapshot)) => got.extend(snapshot.entries),
            Some(Event::Entry(entry)) => got.push(entry),
            other => panic!("{other:?}"),
        }
    }
    let mut got: Vec<_> = got.into_iter().map(|entry| entry.post.unwrap().post_id).collect();
    got.sort_unstable();
    assert_eq!(got, posts);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_user_has_an_empty_timeline() {
    let world = World::start().await;
    assert_eq!(
        list(&world, "nobody", 0, "").await,
        v1::ListTimelineResponse::default()
    );
    let known = world
        .stores
        .users
        .find(&[herald_model::UserId::new("nobody").unwrap()])
        .await
        .unwrap();
    assert_eq!(known, [None]);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_requests_name_the_field() {
    let world = World::start().await;
    for _ in 0..2 {
        let post = world.post("107", "hi").await;
        world.deliver(post, "reader", false).await;
        world.deliver(post, "other", false).await;
    }
    let token = list(&world, "reader", 1, "").await.next_page_token;
    let mut client = world.timelines();
    let mut refused = async |user: &str, page_size, token: &str| {
        let request = v1::ListTimelineRequest {
            user_id: user.into(),
            page_size,
            page_token: token.into(),
        };
        fields(&client.list_timeline(request).await.unwrap_err())
    };
    assert_eq!(refused("", 0, "").await, ["user_id"]);
    assert_eq!(refused("reader", -1, "").await, ["page_size"]);
    assert_eq!(refused("reader", 1, "nonsense").await, ["page_token"]);
    assert_eq!(
        refused("other", 1, &token).await,
        ["page_token"],
        "a token of another user"
    );

    // A token of one call is invalid for another call.
    let recipients = v1::ListRecipientsRequest {
        post_id: 1,
        channel: v1::Channel::Timeline.into(),
        page_token: token.clone(),
        ..Default::default()
    };
    assert_eq!(
        fields(&world.deliveries().list_recipients(recipients).await.unwrap_err()),
        ["page_token"]
    );
    let watch = v1::WatchTimelineRequest {
        user_id: "reader".into(),
        resume_token: token,
        ..Default::default()
    };
    assert_eq!(
        fields(&world.timelines().watch_timeline(watch).await.unwrap_err()),
        ["resume_token"]
    );
    let watch = v1::WatchTimelineRequest {
        user_id: "reader".into(),
        snapshot_size: -1,
        ..Default::default()
    };
    let status = world.timelines().watch_timeline(watch).await.unwrap_err();
    assert_eq!(
        (status.code(), fields(&status)),
        (Code::InvalidArgument, vec!["snapshot_size".to_owned()])
    );
    world.stop().await.unwrap();
}
