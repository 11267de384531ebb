//! `herald serve scaler`: beside NATS alone, as KEDA calls it.

use std::time::Duration;

use harness::{Process, run, until};
use herald_local_nats::{Config as NatsConfig, Server as Nats};
use herald_proto::externalscaler::{
    GetMetricsRequest, ScaledObjectRef, external_scaler_client::ExternalScalerClient,
};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{HERALD, surface::http_get};

const LIMIT: Duration = Duration::from_mins(1);
const SERVING: i32 = 1;

#[tokio::test(flavor = "multi_thread")]
async fn the_scaler_needs_nats_alone() {
    let mut nats = Nats::start(NatsConfig::default()).await.unwrap();
    let url = nats.client_url();
    let variables = [("HERALD_NATS__URL".to_owned(), url.clone())];
    let mut scaler = Process::start(HERALD, "scaler", &[], &variables).await;
    let channel = Endpoint::from_shared(scaler.url()).unwrap().connect_lazy();
    let mut client = ExternalScalerClient::new(channel.clone());
    let metadata = [
        ("role", "push"),
        ("lane", "high"),
        ("scalerAddress", "scaler:7700"),
    ];
    let object = ScaledObjectRef {
        name: "push-high".into(),
        namespace: "herald".into(),
        scaler_metadata: metadata.map(|(key, value)| (key.into(), value.into())).into(),
    };
    let request = GetMetricsRequest {
        scaled_object_ref: Some(object.clone()),
        metric_name: "herald-push-high-seconds".into(),
    };

    // It makes no streams, and says what is missing.
    let error = client.get_metrics(request.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("herald topology apply"), "{error}");
    let applied = run(HERALD, &["topology", "apply", "--nats-url", &url], &[]).await;
    assert_eq!(applied.code, 0, "{applied:?}");
    until("the work is known", LIMIT, async || {
        client.clone().get_metrics(request.clone()).await.is_ok()
    })
    .await;
    let value = client
        .get_metrics(request)
        .await
        .unwrap()
        .into_inner()
        .metric_values;
    assert_eq!(value[0].metric_name, "herald-push-high-seconds");
    assert_eq!(value[0].metric_value, 0);
    assert!(!client.is_active(object).await.unwrap().into_inner().result);
    let metrics = http_get(scaler.http(), "/metrics").await;
    let work = "herald_scaler_work_seconds{role=\"push\",lane=\"high\"} 0.0";
    assert!(metrics.contains(work), "{metrics}");

    let mut health = HealthClient::new(channel);
    let mut status = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        health.check(request).await.unwrap().into_inner().status
    };
    for service in ["", "scaler", "externalscaler.ExternalScaler", "liveness"] {
        assert_eq!(status(service).await, SERVING, "{service:?}");
    }
    nats.stop().await.unwrap();
    let mut not_serving = async || status("scaler").await != SERVING;
    let waiting = async { while !not_serving().await {} };
    tokio::time::timeout(LIMIT, waiting).await.unwrap();
    assert_eq!(
        status("liveness").await,
        SERVING,
        "a broker that is away is no reason to restart"
    );
    assert_eq!(scaler.stop().await, 0, "{}", scaler.log());
}

#[tokio::test]
async fn the_scaler_beside_another_role_needs_what_that_needs() {
    let nats = [("HERALD_NATS__URL", "nats://127.0.0.1:1")];
    let done = run(HERALD, &["serve", "scaler,push"], &nats).await;
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("store.url"), "{done:?}");
    let done = run(HERALD, &["serve", "scaler"], &[]).await;
    assert!(done.stderr.contains("nats.url"), "{done:?}");
    let done = run(HERALD, &["config", "check", "--roles", "scaler"], &nats).await;
    assert_eq!(done.code, 0, "{done:?}");
}
