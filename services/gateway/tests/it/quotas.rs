//! The quota of posts of an author in a day.

use std::time::Duration;

use futures::stream;
use herald_gateway::{Config, RateLimits};
use herald_mesh::Subject;
use herald_model::{Lane, time::Timestamp};
use herald_proto::{mesh_v1::PostCreated, v1};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{Setup, World, reason, submit};

const DAY: Duration = Duration::from_hours(24);

/// The configuration with a quota.
pub(crate) fn with_quota(posts_per_day_max: u32) -> Config {
    Config {
        limits: RateLimits {
            posts_per_day_max,
            ..RateLimits::default()
        },
        ..Setup::default().config
    }
}

fn request_id(n: usize) -> String {
    format!("6b1e7f0c-1f5d-4a3e-9d55-0c7f6b1b2a{n:02}")
}

fn post(author: &str, n: usize) -> v1::SubmitPostRequest {
    v1::SubmitPostRequest {
        request_id: request_id(n),
        ..submit(author, "hi")
    }
}

fn assert_refused(status: &Status) {
    assert_eq!(
        (status.code(), reason(status).as_str()),
        (Code::ResourceExhausted, "QUOTA_EXCEEDED"),
        "{status:?}"
    );
    let quota = status.get_details_quota_failure().expect("a quota failure");
    assert_eq!(quota.violations[0].subject, "author_id");
    let wait = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let wait = wait.expect("a retry delay");
    assert!(wait <= DAY && wait + Duration::from_mins(5) > DAY, "{wait:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_author_has_as_many_posts_as_the_quota_and_a_repeated_request_is_never_refused() {
    let config = with_quota(3);
    let setup = Setup {
        config,
        ..Setup::default()
    };
    let world = World::start_with(setup).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        let accepted = world
            .posts()
            .submit_post(post("107", n))
            .await
            .unwrap()
            .into_inner();
        assert!(!accepted.duplicate);
        ids.push(accepted.post_id);
    }
    let mut refused = 0;
    for round in 0..3 {
        // The archive has the posts from the second round on.
        if round == 1 {
            world.wait_until_archived().await;
        }
        for n in 10..13 {
            assert_refused(&world.posts().submit_post(post("107", n)).await.unwrap_err());
            assert_refused(
                &world
                    .posts()
                    .submit_post(submit("107", "generated"))
                    .await
                    .unwrap_err(),
            );
            refused += 2;
        }
        for (n, id) in ids.iter().enumerate() {
            let again = world
                .posts()
                .submit_post(post("107", n))
                .await
                .unwrap()
                .into_inner();
            assert!(again.duplicate && again.post_id == *id, "{again:?}");
        }
    }
    let counted = world
        .metrics
        .posts_refused
        .get_or_create(&[("code", "quota_exceeded")])
        .get();
    assert_eq!(counted, refused);
    // Another author is not concerned, and posts that are accepted at once don't pass together.
    let posts = [["108", "109"]; 20]
        .into_iter()
        .flatten()
        .map(|author| v1::SubmitPostsRequest {
            post: Some(submit(author, "one of many")),
        });
    let answer = world
        .posts()
        .submit_posts(stream::iter(posts.collect::<Vec<_>>()))
        .await;
    let answer = answer.unwrap().into_inner();
    assert_eq!(
        (answer.accepted_count, answer.failed_count),
        (6, 34),
        "{answer:?}"
    );
    world.stop().await.unwrap();
}

/// What another gateway has accepted a moment ago, this one does not know: neither the post nor its request.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_another_gateway_has_accepted_is_not_refused() {
    let setup = Setup {
        config: with_quota(1),
        ..Setup::default()
    };
    let world = World::start_with(setup).await;
    for n in 1..20 {
        let author = format!("author-{n}");
        let own = world.posts().submit_post(submit(&author, "hi")).await;
        own.unwrap();
        let accepted = PostCreated {
            author_key: world.key(&author).await.0,
            author_id: author.clone(),
            request_id: request_id(n),
            text: "hi".into(),
            lane: v1::Lane::Normal.into(),
            accepted_at_us: Timestamp::now().0,
            push_ttl_seconds: 28 * 24 * 3_600,
            ..PostCreated::default()
        };
        let message_id = format!("post/{author}/{}", request_id(n));
        let published = world
            .mesh
            .publish(Subject::PostCreated(Lane::Normal), Some(&message_id), &accepted);
        let published = published.await.unwrap();
        let again = v1::SubmitPostRequest {
            push_ttl: Some(prost_types::Duration {
                seconds: 28 * 24 * 3_600,
                nanos: 0,
            }),
            ..post(&author, n)
        };
        let again = world.posts().submit_post(again).await.unwrap().into_inner();
        assert!(
            again.duplicate && again.post_id == published.sequence,
            "{again:?}"
        );
        assert_refused(
            &world
                .posts()
                .submit_post(post(&author, 30 + n))
                .await
                .unwrap_err(),
        );
    }
    world.stop().await.unwrap();
}
