//! What KEDA asks for.

use herald_proto::externalscaler::{GetMetricSpecResponse, GetMetricsRequest, ScaledObjectRef};
use herald_scaler::{Config, Error};
use tonic::{Code, Request, codegen::http::uri::PathAndQuery};
use tonic_types::StatusExt as _;

use crate::harness::{World, config, object, with_metadata};

#[tokio::test]
async fn a_trigger_has_one_metric_and_its_target() {
    let world = World::start().await;
    let scaler = world.scaler(config()).await;
    for (metadata, name, size, float) in [
        (
            vec![("role", "push"), ("lane", "high"), ("targetSeconds", "30")],
            "herald-push-high-seconds",
            30,
            30.0,
        ),
        (
            vec![("role", "fanout"), ("lane", "")],
            "herald-fanout-all-seconds",
            5,
            5.0,
        ),
        (
            vec![("role", "archive"), ("targetSeconds", "1.5")],
            "herald-archive-all-seconds",
            2,
            1.5,
        ),
    ] {
        let mut client = scaler.client.clone();
        let spec = client.get_metric_spec(with_metadata(&metadata)).await.unwrap();
        let spec = spec.into_inner().metric_specs.into_iter().next().unwrap();
        assert_eq!((spec.metric_name.as_str(), spec.target_size), (name, size));
        assert!((spec.target_size_float - float).abs() < f64::EPSILON);
        let value = scaler.value(&with_metadata(&metadata)).await.unwrap();
        assert_eq!(value.metric_name, name);
    }
}

#[tokio::test]
async fn invalid_metadata_is_refused_with_a_sentence() {
    let world = World::start().await;
    let scaler = world.scaler(config()).await;
    for (metadata, field, part) in [
        (
            vec![],
            "role",
            "must be one of fanout, timeline, push, archive, analytics",
        ),
        (vec![("role", "gateway")], "role", "\"gateway\" is not one of"),
        (
            vec![("role", "push"), ("lane", "urgent")],
            "lane",
            "\"urgent\" is not one of high, normal, low",
        ),
        (
            vec![("role", "analytics"), ("lane", "low")],
            "lane",
            "has no lanes",
        ),
        (
            vec![("role", "push"), ("targetSeconds", "0")],
            "targetSeconds",
            "from 1 to 3600",
        ),
        (
            vec![("role", "push"), ("targetseconds", "5")],
            "targetseconds",
            "use targetSeconds",
        ),
    ] {
        let object = with_metadata(&metadata);
        let error = scaler.error(&object).await.unwrap();
        assert_eq!(error.code(), Code::InvalidArgument, "{metadata:?}");
        assert!(error.message().contains(part), "{error}");
        let violations = error.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, format!("scalerMetadata.{field}"));
        let mut client = scaler.client.clone();
        let error = client.get_metric_spec(object.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        let error = client.stream_is_active(object).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    let error = scaler
        .client
        .clone()
        .get_metrics(GetMetricsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_call_of_a_newer_keda_is_unimplemented() {
    let world = World::start().await;
    let scaler = world.scaler(config()).await;
    let mut client = tonic::client::Grpc::new(scaler.channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/externalscaler.ExternalScaler/StreamMetricSpec");
    let codec = tonic_prost::ProstCodec::<ScaledObjectRef, GetMetricSpecResponse>::default();
    let request = Request::new(object("push", "high"));
    let error = client.server_streaming(request, path, codec).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
}

#[tokio::test]
async fn the_service_does_not_start_with_settings_out_of_bounds() {
    let world = World::start().await;
    let mut scaler = world
        .scaler(Config {
            rate_factor_max: 0,
            ..config()
        })
        .await;
    let ended = (&mut scaler.service).await.unwrap();
    assert!(matches!(ended, Err(Error::Config(_))), "{ended:?}");
}
