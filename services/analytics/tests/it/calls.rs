//! AnalyticsService.

use herald_model::{Channel, PostId};
use herald_proto::v1::analytics_service_client::AnalyticsServiceClient;
use herald_proto::v1::{GetPostStatsRequest, GetTotalsRequest};
use prost_types::Timestamp;
use tonic::Code;
use tonic::transport::Channel as Transport;
use tonic_types::StatusExt as _;

use crate::harness::{HOUR, Harness, NEXT_HOUR};

fn at(us: i64) -> Timestamp {
    Timestamp {
        seconds: us / 1_000_000,
        nanos: 0,
    }
}

fn bad_field(status: &tonic::Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    status.get_details_bad_request().unwrap().field_violations[0]
        .field
        .clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_without_the_key_of_its_author_is_counted() {
    let harness = Harness::start().await;
    let post = harness.post_with_key(0, HOUR).await;
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    harness.wait_until_acknowledged().await;
    let totals = harness.stores.totals.post_totals(PostId(post)).await.unwrap();
    assert_eq!(totals.unwrap().author, harness.author().await);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_get_totals_and_specific_errors() {
    let harness = Harness::start().await;
    let post_id = harness.post(HOUR).await;
    harness.settle(post_id, Channel::Timeline, 1, HOUR).await;
    harness.settle(post_id, Channel::Push, 1, NEXT_HOUR).await;
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    harness.wait_until_acknowledged().await;
    let transport = Transport::from_shared(running.address.clone())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = AnalyticsServiceClient::new(transport);

    let stats = client
        .get_post_stats(GetPostStatsRequest { post_id })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((stats.post_id, stats.author_id.as_str()), (post_id, "ann"));
    assert_eq!(
        (stats.timeline_latency_ms_max, stats.push_latency_ms_max),
        (1_500, 1_500)
    );
    let totals = stats.totals.unwrap();
    assert_eq!(
        (
            totals.post_count,
            totals.timeline_delivered_count,
            totals.push_suppressed_count
        ),
        (1, 10, 2)
    );

    let unknown = client
        .get_post_stats(GetPostStatsRequest { post_id: 99 })
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(
        unknown.get_details_error_info().unwrap().reason,
        "POST_NOT_COUNTED"
    );
    let missing = client
        .get_post_stats(GetPostStatsRequest { post_id: 0 })
        .await
        .unwrap_err();
    assert_eq!(bad_field(&missing), "post_id");

    let range = |start_time, end_time| GetTotalsRequest { start_time, end_time };
    let first = client
        .get_totals(range(Some(at(HOUR)), Some(at(HOUR + 1_000_000))))
        .await
        .unwrap()
        .into_inner();
    let totals = first.totals.unwrap();
    assert_eq!(
        (
            totals.post_count,
            totals.timeline_delivered_count,
            totals.push_delivered_count
        ),
        (1, 10, 0)
    );
    let both = client
        .get_totals(range(Some(at(HOUR)), Some(at(NEXT_HOUR + 1_000_000))))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(both.totals.unwrap().push_delivered_count, 10);
    let hours: Vec<_> = both.hours.iter().map(|hour| hour.start_time).collect();
    assert_eq!(hours, [Some(at(HOUR)), Some(at(NEXT_HOUR))]);

    let backwards = client
        .get_totals(range(Some(at(NEXT_HOUR)), Some(at(HOUR))))
        .await
        .unwrap_err();
    assert_eq!(bad_field(&backwards), "end_time");
    let long = client
        .get_totals(range(Some(at(HOUR)), Some(at(HOUR + 32 * 24 * 3_600_000_000))))
        .await
        .unwrap_err();
    assert_eq!(bad_field(&long), "end_time");
    let malformed = Some(Timestamp {
        seconds: 0,
        nanos: -1,
    });
    let malformed = client.get_totals(range(malformed, None)).await.unwrap_err();
    assert_eq!(bad_field(&malformed), "start_time");
    drop(client);
    running.stop().await;
}
