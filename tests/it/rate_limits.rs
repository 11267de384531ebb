//! Limits of the rate at which a principal calls.

use harness::{Herald, Options};
use herald_proto::v1;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::HERALD;

const ROOT_KEY: &str = "0123456789abcdef0123456789abcdef";

fn with_key<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let credential = format!("Bearer {ROOT_KEY}").parse().unwrap();
    request.metadata_mut().insert("authorization", credential);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_calls_too_often_is_refused_at_both_ports() {
    let variables = [
        ("HERALD_AUTH__ENABLED", "true"),
        ("HERALD_AUTH__ROOT_KEY", ROOT_KEY),
        ("HERALD_GATEWAY__LIMITS__CALLS_PER_SECOND_PER_PRINCIPAL", "1"),
        ("HERALD_GATEWAY__LIMITS__CALLS_BURST_PER_PRINCIPAL", "10"),
    ];
    let options = Options {
        variables: variables.map(|(name, value)| (name.into(), value.into())).into(),
        ..Options::default()
    };
    let herald = Herald::start(HERALD, options).await;
    let clients = herald.clients().await;
    // Calls without a valid credential are refused before, and take nothing of the key's.
    for _ in 0..50 {
        let refused = clients.mesh().get_lag(v1::GetLagRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    }
    let mut refused = Vec::new();
    for _ in 0..10 {
        let lag = clients.mesh().get_lag(with_key(v1::GetLagRequest {})).await;
        refused.extend(lag.err());
        let count = v1::CountFollowersRequest {
            author_id: "1".into(),
        };
        let count = clients.graph().count_followers(with_key(count)).await;
        refused.extend(count.err());
    }
    // 20 calls, of which the burst is admitted and what the bucket got meanwhile.
    assert!((1..=10).contains(&refused.len()), "{refused:?}");
    for status in refused {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "RATE_LIMITED");
        let quota = status.get_details_quota_failure().unwrap();
        assert_eq!(quota.violations[0].subject, "principal");
        assert!(status.get_details_retry_info().is_some());
    }
}
