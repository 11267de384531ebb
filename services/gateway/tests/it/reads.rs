//! BatchGetPosts and ListPosts.

use herald_proto::v1;

use crate::harness::{World, fields, submit};

async fn list(world: &World, author: &str, page_size: i32, token: &str) -> (Vec<u64>, String) {
    let request = v1::ListPostsRequest {
        author_id: author.into(),
        page_size,
        page_token: token.into(),
    };
    let page = world.posts().list_posts(request).await.unwrap().into_inner();
    let ids = page.posts.iter().map(|post| post.post_id).collect();
    (ids, page.next_page_token)
}

async fn delete(world: &World, post_id: u64) {
    let request = v1::DeletePostRequest {
        post_id,
        any_author: true,
        ..Default::default()
    };
    world.posts().delete_post(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_posts_names_the_missing_ones() {
    let world = World::start().await;
    let first = world.post("107", "first").await;
    let gone = world.post("107", "gone").await;
    let other = world.post("108", "other").await;
    delete(&world, gone).await;
    let get = |post_ids: Vec<u64>| {
        let mut posts = world.posts();
        async move { posts.batch_get_posts(v1::BatchGetPostsRequest { post_ids }).await }
    };
    let found = get(vec![other, gone, 99, first]).await.unwrap().into_inner();
    let texts: Vec<_> = found.posts.iter().map(|post| post.text.as_str()).collect();
    assert_eq!(texts, ["other", "first"]);
    assert_eq!(found.missing_post_ids, [gone, 99]);
    assert_eq!(found.remaining_post_ids, Vec::<u64>::new());

    let refused = |post_ids| async { fields(&get(post_ids).await.unwrap_err()) };
    assert_eq!(refused(vec![]).await, ["post_ids"]);
    assert_eq!(refused(vec![1; 101]).await, ["post_ids"]);
    assert_eq!(refused(vec![1, 0]).await, ["post_ids[1]"]);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authors_posts_are_listed_newest_first() {
    let world = World::start().await;
    let mut posts = Vec::new();
    for n in 0..5 {
        posts.push(world.post("107", &format!("post {n}")).await);
        world.post("108", "of somebody else").await;
    }
    delete(&world, posts.remove(3)).await;
    world.wait_until_archived().await;
    posts.reverse();
    let (first, token) = list(&world, "107", 3, "").await;
    assert_eq!(first, posts[..3]);
    let (second, end) = list(&world, "107", 3, &token).await;
    assert_eq!((second.as_slice(), end.as_str()), (&posts[3..], ""));
    assert_eq!(list(&world, "107", 4, "").await, (posts, String::new()));
    assert_eq!(list(&world, "unknown", 0, "").await, (vec![], String::new()));

    let request = |author: &str, page_size, page_token: &str| v1::ListPostsRequest {
        author_id: author.into(),
        page_size,
        page_token: page_token.into(),
    };
    for (request, field) in [
        (request("", 0, ""), "author_id"),
        (request("107", -1, ""), "page_size"),
        (request("108", 0, &token), "page_token"),
    ] {
        let refused = world.posts().list_posts(request).await.unwrap_err();
        assert_eq!(fields(&refused), [field]);
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_with_long_posts_stay_below_the_message_limit_of_clients() {
    let world = World::start().await;
    let text = "😀".repeat(10_000);
    let requests = (0..100).map(|_| v1::SubmitPostsRequest {
        post: Some(submit("107", &text)),
    });
    let requests = futures::stream::iter(requests.collect::<Vec<_>>());
    let answer = world.posts().submit_posts(requests).await.unwrap();
    let mut post_ids = answer.into_inner().post_ids;
    world.wait_until_archived().await;

    let request = v1::BatchGetPostsRequest {
        post_ids: post_ids.clone(),
    };
    let found = world.posts().batch_get_posts(request).await.unwrap().into_inner();
    assert!((50..100).contains(&found.posts.len()), "{}", found.posts.len());
    assert_eq!(found.remaining_post_ids, post_ids[found.posts.len()..]);

    let (mut listed, token) = list(&world, "107", 200, "").await;
    assert!((50..100).contains(&listed.len()), "{}", listed.len());
    let (rest, end) = list(&world, "107", 200, &token).await;
    assert_eq!(end, "");
    listed.extend(rest);
    post_ids.reverse();
    assert_eq!(listed, post_ids);
    world.stop().await.unwrap();
}
