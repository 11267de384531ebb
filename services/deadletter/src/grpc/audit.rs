//! The gRPC server of AuditService.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use herald_audit::{
    Auditor, ChannelSums, Error, Event, Finding, FindingKind, Progress, Repaired, Scope, Summary,
};
use herald_model::{Channel, PostId, time::Timestamp};
use herald_proto::v1::{self, audit_service_server::AuditService, run_audit_response};
use herald_rpc::status;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{
    rebuild::{self, Target},
    responses::Responses,
};

/// Events between an audit and its call.
const EVENTS_BUFFERED_MAX: usize = 16;
/// Retry delay in the error of an audit that is refused because another one runs.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Implements AuditService.
pub(crate) struct AuditApi {
    auditor: Auditor,
    /// One audit runs at a time: an audit reads every timeline and uses some 150 MB of memory.
    permit: Arc<Semaphore>,
    /// One rebuild of timelines runs at a time.
    rebuild_permit: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl AuditApi {
    pub(crate) fn new(auditor: Auditor, shutdown: CancellationToken) -> Self {
        Self {
            auditor,
            permit: Arc::new(Semaphore::new(1)),
            rebuild_permit: Arc::new(Semaphore::new(1)),
            shutdown,
        }
    }
}

type RebuildStream = Pin<Box<dyn Stream<Item = Result<v1::RebuildTimelinesResponse, Status>> + Send>>;
type AuditStream = Pin<Box<dyn Stream<Item = Result<v1::RunAuditResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AuditService for AuditApi {
    type RunAuditStream = AuditStream;

    async fn run_audit(
        &self,
        request: Request<v1::RunAuditRequest>,
    ) -> Result<Response<AuditStream>, Status> {
        let request = request.into_inner();
        let scope = scope(&request)?;
        let permit = self.permit.clone().try_acquire_owned().map_err(|_| {
            status::exhausted(
                "AUDIT_RUNNING",
                "another audit is running; retry when it has ended",
                RETRY_AFTER,
            )
        })?;
        self.check_scope(scope).await?;
        let (events, mut received) = mpsc::channel(EVENTS_BUFFERED_MAX);
        let (mut responses, stream) = Responses::new(self.shutdown.clone());
        let auditor = self.auditor.clone();
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let auditing = shutdown.run_until_cancelled(auditor.run(scope, request.repair, &events));
            tokio::pin!(auditing);
            let outcome = loop {
                tokio::select! {
                    biased;
                    Some(event) = received.recv() => {
                        if !responses.send(Ok(event_to_v1(event))).await {
                            // A closed channel ends the audit.
                            received.close();
                        }
                    }
                    outcome = &mut auditing => break outcome,
                }
            };
            while let Ok(event) = received.try_recv() {
                responses.send(Ok(event_to_v1(event))).await;
            }
            let last = match outcome {
                None => Err(status::unavailable(
                    "SHUTTING_DOWN",
                    "the service is shutting down",
                )),
                Some(Ok(summary)) => Ok(response(run_audit_response::Event::Summary(summary_to_v1(
                    &summary,
                )))),
                Some(Err(Error::Abandoned)) => return,
                Some(Err(error)) => Err(error_to_status(&error)),
            };
            responses.send(last).await;
            drop(permit);
        });
        Ok(Response::new(Box::pin(stream)))
    }

    type RebuildTimelinesStream = RebuildStream;

    async fn rebuild_timelines(
        &self,
        request: Request<v1::RebuildTimelinesRequest>,
    ) -> Result<Response<RebuildStream>, Status> {
        let permit = self.rebuild_permit.clone().try_acquire_owned().map_err(|_| {
            status::exhausted(
                "REBUILD_RUNNING",
                "another rebuild of timelines is running; retry when it has ended",
                RETRY_AFTER,
            )
        })?;
        let target = Target::parse(&self.auditor, request.into_inner()).await?;
        let (responses, stream) = Responses::new(self.shutdown.clone());
        let (auditor, shutdown) = (self.auditor.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            rebuild::run(auditor, target, responses, shutdown).await;
            drop(permit);
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

impl AuditApi {
    /// Refuses an unknown post as an error of the call and not of its stream.
    async fn check_scope(&self, scope: Scope) -> Result<(), Status> {
        match self.auditor.check_scope(scope).await {
            Ok(()) => Ok(()),
            Err(error) => Err(error_to_status(&error)),
        }
    }
}

fn scope(request: &v1::RunAuditRequest) -> Result<Scope, Status> {
    match (request.since_time, request.post_id) {
        (Some(_), 1..) => Err(status::invalid(&[(
            "post_id",
            "must not be set together with since_time",
        )])),
        (None, 0) => Ok(Scope::All),
        (None, post) => Ok(Scope::Post(PostId(post))),
        (Some(since), 0) => match herald_proto::timestamp_from_proto(&since) {
            Some(since) if since <= Timestamp::now() => Ok(Scope::Since(since)),
            _ => Err(status::invalid(&[("since_time", "must be a time in the past")])),
        },
    }
}

fn error_to_status(error: &Error) -> Status {
    match error {
        Error::UnknownPost(_) => status::not_found("POST_NOT_FOUND", error.to_string()),
        Error::Mesh(error) => status::from_mesh(error),
        Error::Store(error) => status::from_store(error),
        Error::Abandoned | Error::Task(_) => status::internal(error),
    }
}

fn response(event: run_audit_response::Event) -> v1::RunAuditResponse {
    v1::RunAuditResponse { event: Some(event) }
}

fn event_to_v1(event: Event) -> v1::RunAuditResponse {
    response(match event {
        Event::Finding(finding) => run_audit_response::Event::Finding(finding_to_v1(finding)),
        Event::Progress(Progress {
            posts,
            posts_total,
            deliveries,
        }) => run_audit_response::Event::Progress(v1::AuditProgress {
            post_count: posts,
            post_count_total: posts_total,
            delivery_count: deliveries,
        }),
    })
}

fn finding_to_v1(finding: Finding) -> v1::AuditFinding {
    let (repaired, repair_error) = match finding.repaired {
        Repaired::NotRequested => (false, String::new()),
        Repaired::Sent => (true, String::new()),
        Repaired::Failed(why) => (false, why),
    };
    v1::AuditFinding {
        kind: kind_to_v1(finding.kind).into(),
        post_id: finding.post.map_or(0, |post| post.0),
        channel: finding
            .channel
            .map_or(v1::Channel::Unspecified, v1::Channel::from)
            .into(),
        user_id: finding
            .user
            .map(herald_model::UserId::into_string)
            .unwrap_or_default(),
        chunk_id: finding.chunk.map(|chunk| chunk.to_string()).unwrap_or_default(),
        delivery_count: finding.deliveries,
        detail: finding.detail,
        repaired,
        repair_error,
    }
}

fn kind_to_v1(kind: FindingKind) -> v1::AuditFindingKind {
    match kind {
        FindingKind::Unarchived => v1::AuditFindingKind::Unarchived,
        FindingKind::Unplanned => v1::AuditFindingKind::Unplanned,
        FindingKind::Lost => v1::AuditFindingKind::Lost,
        FindingKind::Missing => v1::AuditFindingKind::Missing,
        FindingKind::Extra => v1::AuditFindingKind::Extra,
        FindingKind::Inconsistent => v1::AuditFindingKind::Inconsistent,
        FindingKind::Unexplained => v1::AuditFindingKind::Unexplained,
        FindingKind::Unrecorded => v1::AuditFindingKind::Unrecorded,
        FindingKind::Miscounted => v1::AuditFindingKind::Miscounted,
    }
}

fn summary_to_v1(summary: &Summary) -> v1::AuditSummary {
    let channel = |channel, sums: &ChannelSums| v1::AuditedChannel {
        channel: v1::Channel::from(channel).into(),
        targeted_count: sums.targeted,
        delivered_count: sums.delivered,
        suppressed_count: sums.suppressed,
        expired_count: sums.expired,
        pending_count: sums.pending,
        dead_count: sums.dead,
    };
    let findings = summary
        .findings
        .iter()
        .map(|(kind, count)| v1::AuditFindingCount {
            kind: kind_to_v1(*kind).into(),
            count: *count,
        });
    v1::AuditSummary {
        post_count: summary.posts,
        channels: vec![
            channel(Channel::Timeline, &summary.timeline),
            channel(Channel::Push, &summary.push),
        ],
        timeline_entry_count: summary.timeline_entries,
        backfilled_count: summary.backfilled,
        planning_post_count: summary.planning_posts,
        dead_post_count: summary.dead_posts,
        incomplete_timeline_count: summary.incomplete_timelines,
        findings: findings.collect(),
        repaired_count: summary.repaired,
        seconds: summary.took.as_secs_f64(),
    }
}
