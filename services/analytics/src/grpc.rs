//! AnalyticsService.

use std::sync::Arc;

use herald_model::PostId;
use herald_model::time::Timestamp;
use herald_proto::v1::analytics_service_server::AnalyticsService;
use herald_proto::v1::{
    GetPostStatsRequest, GetPostStatsResponse, GetTotalsRequest, GetTotalsResponse, HourTotals,
    Totals as TotalsV1,
};
use herald_rpc::status;
use herald_store::{Counts, Totals, Users};
use tonic::{Request, Response, Status};

use crate::domain::parse_hour_range;

/// Valid seconds of a `google.protobuf.Timestamp`: the years 1 to 9999.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Implements AnalyticsService on the totals.
pub(crate) struct Analytics {
    pub(crate) totals: Arc<dyn Totals>,
    pub(crate) users: Arc<dyn Users>,
}

#[tonic::async_trait]
impl AnalyticsService for Analytics {
    async fn get_post_stats(
        &self,
        request: Request<GetPostStatsRequest>,
    ) -> Result<Response<GetPostStatsResponse>, Status> {
        let post_id = request.into_inner().post_id;
        if post_id == 0 {
            return Err(status::invalid(&[("post_id", "must be given")]));
        }
        let not_counted =
            || status::not_found("POST_NOT_COUNTED", format!("post {post_id} is not counted yet"));
        let totals = self
            .totals
            .post_totals(PostId(post_id))
            .await
            .map_err(|error| status::from_store(&error))?
            .ok_or_else(not_counted)?;
        let ids = self
            .users
            .ids(&[totals.author])
            .await
            .map_err(|error| status::from_store(&error))?;
        let author_id = ids
            .into_iter()
            .next()
            .flatten()
            .map(herald_model::UserId::into_string)
            .unwrap_or_default();
        Ok(Response::new(GetPostStatsResponse {
            post_id,
            author_id,
            totals: Some(totals_to_v1(totals.counts)),
            timeline_latency_ms_max: totals.timeline_latency_ms_max,
            push_latency_ms_max: totals.push_latency_ms_max,
        }))
    }

    async fn get_totals(
        &self,
        request: Request<GetTotalsRequest>,
    ) -> Result<Response<GetTotalsResponse>, Status> {
        let request = request.into_inner();
        let start = parse_time("start_time", request.start_time)?;
        let end = parse_time("end_time", request.end_time)?;
        let range = parse_hour_range(start, end, Timestamp::now())
            .map_err(|violation| status::invalid(&[violation]))?;
        let found = self
            .totals
            .hour_totals(range.start, range.end)
            .await
            .map_err(|error| status::from_store(&error))?;
        let mut sum = Counts::default();
        let hours = found
            .into_iter()
            .map(|(hour, counts)| {
                sum += counts;
                let start_time = prost_types::Timestamp {
                    seconds: i64::from(hour) * 3_600,
                    nanos: 0,
                };
                HourTotals {
                    start_time: Some(start_time),
                    totals: Some(totals_to_v1(counts)),
                }
            })
            .collect();
        Ok(Response::new(GetTotalsResponse {
            totals: Some(totals_to_v1(sum)),
            hours,
        }))
    }
}

fn parse_time(field: &str, time: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>, Status> {
    let Some(time) = time else { return Ok(None) };
    if !TIMESTAMP_SECONDS.contains(&time.seconds) || !(0..1_000_000_000).contains(&time.nanos) {
        return Err(status::invalid(&[(
            field,
            "must be a time in the years 1 to 9999",
        )]));
    }
    Ok(Some(Timestamp(
        time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000,
    )))
}

fn totals_to_v1(counts: Counts) -> TotalsV1 {
    // Only dead counts can be negative.
    let count = |count: i64| u64::try_from(count).unwrap_or_default();
    TotalsV1 {
        post_count: count(counts.posts),
        deleted_post_count: count(counts.deleted_posts),
        timeline_delivered_count: count(counts.timeline_delivered),
        timeline_dead_count: counts.timeline_dead,
        push_delivered_count: count(counts.push_delivered),
        push_suppressed_count: count(counts.push_suppressed),
        push_expired_count: count(counts.push_expired),
        push_dead_count: counts.push_dead,
    }
}
