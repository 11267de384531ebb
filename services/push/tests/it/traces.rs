//! What a sampled push tells about its trace.

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::harness::{Herald, numbers};

#[tokio::test]
async fn the_latency_of_a_push_names_its_trace() {
    // Without an exporter: the traces are sampled and go nowhere.
    let provider = SdkTracerProvider::builder().build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    // All tasks of the test run on its thread.
    let _default = herald_test_subscriber::set_for_thread(tracing_subscriber::registry().with(layer));
    let herald = Herald::start().await;
    let user = herald.user("a").await;
    herald.webhook(user, "a-hook").await;
    let post = herald.post("hello").await;
    herald.archive(post, "hello").await;
    let chunk = herald.push(post, &[user]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 0]);
    let metrics = herald.metrics.open_metrics();
    let mut buckets = metrics
        .lines()
        .filter(|line| line.starts_with("herald_push_accept_to_push_seconds_bucket"));
    assert!(
        buckets.any(|line| line.contains(" # {trace_id=\"")),
        "no exemplar in {metrics}"
    );
}
