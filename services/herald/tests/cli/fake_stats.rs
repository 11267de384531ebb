//! The fake analytics and mesh services, for `herald stats` and `herald lag`.

use std::time::Duration;

use herald_proto::v1::{analytics_service_server::AnalyticsService, mesh_service_server::MeshService, *};
use tokio_stream::StreamExt;
use tonic::{Request, Response};

use crate::server::{RpcResult, RpcStream, Server, time};

#[tonic::async_trait]
impl AnalyticsService for Server {
    async fn get_post_stats(&self, request: Request<GetPostStatsRequest>) -> RpcResult<GetPostStatsResponse> {
        let post_id = self.record(request)?.post_id;
        let totals = Some(Totals {
            post_count: 1,
            timeline_delivered_count: 1_045,
            ..Totals::default()
        });
        let author_id = "107".into();
        Ok(Response::new(GetPostStatsResponse {
            post_id,
            author_id,
            totals,
            ..Default::default()
        }))
    }

    async fn get_totals(&self, request: Request<GetTotalsRequest>) -> RpcResult<GetTotalsResponse> {
        self.record(request)?;
        let totals = Some(Totals {
            post_count: 3,
            ..Totals::default()
        });
        let hours = vec![HourTotals {
            start_time: Some(time(0)),
            totals,
        }];
        Ok(Response::new(GetTotalsResponse { totals, hours }))
    }
}

#[tonic::async_trait]
impl MeshService for Server {
    async fn get_lag(&self, request: Request<GetLagRequest>) -> RpcResult<GetLagResponse> {
        self.record(request)?;
        Ok(Response::new(GetLagResponse {
            streams: vec![stream_lag()],
            read_time: Some(time(0)),
        }))
    }

    type WatchLagStream = RpcStream<WatchLagResponse>;

    async fn watch_lag(&self, request: Request<WatchLagRequest>) -> RpcResult<Self::WatchLagStream> {
        self.record(request)?;
        let answer = WatchLagResponse {
            streams: vec![stream_lag()],
            read_time: Some(time(0)),
        };
        let answers = tokio_stream::iter([Ok(answer.clone()), Ok(answer)]);
        Ok(Response::new(Box::pin(answers.chain(tokio_stream::pending()))))
    }
}

fn stream_lag() -> StreamLag {
    StreamLag {
        stream: "POSTS".into(),
        message_count: 1_234,
        byte_count: 2_000_000,
        byte_count_max: 8_000_000,
        last_sequence: 1_234,
        consumers: vec![ConsumerLag {
            consumer: "fanout-normal".into(),
            pending_count: 12,
            oldest_age_seconds: Duration::from_secs(90).as_secs_f64(),
            ..ConsumerLag::default()
        }],
    }
}
