//! Limits of rates, of addresses and of authors.

use std::time::Duration;

use futures::stream;
use herald_gateway::{Config, RateLimits};
use herald_proto::v1;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::harness::{Setup, World, reason, submit, wait_until};

/// A rate so low that no bucket fills during a test.
const SLOW: u32 = 1;
/// A request id.
const FIRST: &str = "6b1e7f0c-1f5d-4a3e-9d55-0c7f6b1b2a10";

async fn world(limits: RateLimits) -> World {
    let config = Config {
        limits,
        ..Setup::default().config
    };
    World::start_with(Setup {
        config,
        ..Setup::default()
    })
    .await
}

fn assert_limited(status: &Status, subject: &str) {
    assert_eq!(
        (status.code(), reason(status).as_str()),
        (Code::ResourceExhausted, "RATE_LIMITED"),
        "{status:?}"
    );
    let quota = status.get_details_quota_failure().expect("a quota failure");
    assert_eq!(quota.violations[0].subject, subject);
    let wait = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let wait = wait.expect("a retry delay");
    assert!(!wait.is_zero() && wait <= Duration::from_secs(1), "{wait:?}");
}

fn limited(world: &World, by: &'static str) -> u64 {
    world.metrics.rate_limited.get_or_create(&[("by", by)]).get()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_an_address_are_limited_over_both_ports() {
    let world = world(RateLimits {
        calls_per_second_per_address: SLOW,
        calls_burst_per_address: 10,
        ..RateLimits::default()
    })
    .await;
    let mut refused = 0;
    for _ in 0..10 {
        for answer in [
            world.lags().get_lag(v1::GetLagRequest {}).await.map(drop),
            world.posts().submit_post(submit("107", "hi")).await.map(drop),
        ] {
            if let Err(status) = answer {
                assert_limited(&status, "address");
                refused += 1;
            }
        }
    }
    // 20 calls, of which the burst is admitted and what the bucket got meanwhile.
    assert!((1..=10).contains(&refused), "{refused}");
    assert_eq!(limited(&world, "address"), refused);
    // Probes may come from the address of a proxy.
    for channel in [&world.channel, &world.operators] {
        for _ in 0..20 {
            let check = HealthCheckRequest::default();
            HealthClient::new(channel.clone()).check(check).await.unwrap();
        }
    }
    wait_until("the bucket has one again", async || {
        world.lags().get_lag(v1::GetLagRequest {}).await.is_ok()
    })
    .await;
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_of_an_author_are_limited_and_repeated_requests_do_not_count() {
    let world = world(RateLimits {
        posts_per_second_per_author: SLOW,
        posts_burst_per_author: 3,
        ..RateLimits::default()
    })
    .await;
    let post = |author: &str, request_id: &str| v1::SubmitPostRequest {
        request_id: request_id.into(),
        ..submit(author, "hi")
    };
    let first = world.posts().submit_post(post("107", FIRST)).await;
    let first = first.unwrap().into_inner().post_id;
    for _ in 0..20 {
        let again = world.posts().submit_post(post("107", FIRST)).await;
        assert_eq!(again.unwrap().into_inner().post_id, first);
    }
    let mut refused = 0;
    for _ in 0..10 {
        if let Err(status) = world.posts().submit_post(submit("107", "more")).await {
            assert_limited(&status, "author_id");
            refused += 1;
        }
    }
    assert!(refused >= 1, "{refused}");
    // Another author is not concerned, nor are the posts of a stream but for those of the author.
    world.post("108", "hi").await;
    let posts = ["107", "109", "107", "107", "107", "107", "107"].map(|author| v1::SubmitPostsRequest {
        post: Some(submit(author, "one of many")),
    });
    let answer = world.posts().submit_posts(stream::iter(posts)).await;
    let answer = answer.unwrap().into_inner();
    assert!(answer.failed_count >= 1, "{answer:?}");
    assert!(answer.accepted_count >= 1, "{answer:?}");
    assert_eq!(limited(&world, "author"), refused + answer.failed_count);
    world.stop().await.unwrap();
}
