//! An import of follows yields to posts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use harness::{Clients, Herald, Options};
use herald_proto::v1;

use crate::HERALD;

/// As in `herald import follows`.
const CALLS_IN_FLIGHT: usize = 4;
const BATCH_FOLLOWS: u64 = 5_000;

/// Imports the batches of these numbers, each with follows of its own, as `herald import follows` does. Counts the
/// follows in `imported`.
async fn import(clients: &Clients, batches: impl IntoIterator<Item = u64>, imported: &AtomicU64) {
    stream::iter(batches)
        .map(|batch| async move {
            let follows = (0..BATCH_FOLLOWS).map(|n| {
                let number = batch * BATCH_FOLLOWS + n;
                v1::Follow {
                    follower_id: format!("follower-{}", number % 200_003),
                    author_id: format!("author-{}", number.wrapping_mul(2_654_435_761) % 20_011),
                    notify: None,
                }
            });
            let request = v1::ImportFollowsRequest {
                follows: follows.collect(),
            };
            let answer = clients.graph().import_follows(stream::iter([request])).await;
            let answer = answer.unwrap().into_inner();
            assert_eq!(answer.failed_count, 0);
            imported.fetch_add(BATCH_FOLLOWS, Ordering::Relaxed);
        })
        .buffer_unordered(CALLS_IN_FLIGHT)
        .collect::<()>()
        .await;
}

/// Median time from the call of SubmitPost until the post is on a follower's timeline, of at least `posts` posts, and of
/// more until `enough`.
async fn post_to_visible(clients: &Clients, posts: usize, enough: impl Fn() -> bool) -> Duration {
    let mut times = Vec::new();
    while times.len() < posts || !enough() {
        assert!(times.len() < 2_000, "the import starves");
        let started = Instant::now();
        let request = v1::SubmitPostRequest {
            author_id: "live author".into(),
            text: "text".into(),
            ..Default::default()
        };
        let post = clients.posts().submit_post(request).await.unwrap().into_inner();
        loop {
            let request = v1::ListTimelineRequest {
                user_id: "live reader".into(),
                page_size: 1,
                ..Default::default()
            };
            let answer = clients.timelines().list_timeline(request).await.unwrap();
            let newest = answer.into_inner().entries.into_iter().next();
            if newest.and_then(|entry| entry.post).map(|post| post.post_id) == Some(post.post_id) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        times.push(started.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_yields_to_posts() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    let follow = v1::Follow {
        follower_id: "live reader".into(),
        author_id: "live author".into(),
        notify: None,
    };
    let request = v1::FollowRequest { follow: Some(follow) };
    clients.graph().follow(request).await.unwrap();
    post_to_visible(&clients, 5, || true).await;
    let idle = post_to_visible(&clients, 20, || true).await;

    let imported = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    import(&clients, 0..40, &imported).await;
    let count = imported.swap(0, Ordering::Relaxed);
    let alone = count as f64 / started.elapsed().as_secs_f64();

    let importing = tokio::spawn({
        let (clients, imported) = (clients.clone(), imported.clone());
        async move { import(&clients, 40.., &imported).await }
    });
    let started = Instant::now();
    let busy = post_to_visible(&clients, 20, || imported.load(Ordering::Relaxed) > 0).await;
    let beside = imported.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    importing.abort();
    eprintln!(
        "post to visible: {idle:?} alone, {busy:?} beside an import; follows/s: {alone:.0} alone, {beside:.0} beside posts"
    );
    assert!(
        busy < 10 * idle,
        "post to visible: {idle:?} alone, {busy:?} beside an import"
    );
}
