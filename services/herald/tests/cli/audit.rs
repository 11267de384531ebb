//! `herald audit`

use herald_proto::v1::{audit_service_server::AuditService, run_audit_response::Event, *};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use crate::{
    run::herald,
    server::{RpcResult, RpcStream, Server},
};

#[tonic::async_trait]
impl AuditService for Server {
    type RunAuditStream = RpcStream<RunAuditResponse>;

    async fn run_audit(&self, request: Request<RunAuditRequest>) -> RpcResult<Self::RunAuditStream> {
        self.record(request)?;
        let responses = self.next_audit().into_iter().map(Ok);
        Ok(Response::new(Box::pin(
            tokio_stream::iter(responses).map(|response: Result<_, Status>| response),
        )))
    }

    type RebuildTimelinesStream = RpcStream<RebuildTimelinesResponse>;

    async fn rebuild_timelines(
        &self,
        request: Request<RebuildTimelinesRequest>,
    ) -> RpcResult<Self::RebuildTimelinesStream> {
        self.record(request)?;
        Ok(Response::new(Box::pin(tokio_stream::iter(self.next_rebuild()))))
    }
}

fn lost(user: u32) -> Event {
    Event::Finding(AuditFinding {
        kind: AuditFindingKind::Lost.into(),
        post_id: 17,
        channel: Channel::Push.into(),
        user_id: format!("u{user}"),
        chunk_id: "00000000000000ab".into(),
        delivery_count: 1,
        detail: "planned and pending, and no message will deliver it".into(),
        ..AuditFinding::default()
    })
}

fn summary(lost: u64) -> Event {
    let findings = AuditFindingCount {
        kind: AuditFindingKind::Lost.into(),
        count: lost,
    };
    Event::Summary(AuditSummary {
        post_count: 2,
        channels: vec![AuditedChannel {
            channel: Channel::Timeline.into(),
            targeted_count: 1_045,
            delivered_count: 1_045,
            ..AuditedChannel::default()
        }],
        timeline_entry_count: 1_045,
        findings: (lost > 0).then_some(findings).into_iter().collect(),
        seconds: 0.5,
        ..AuditSummary::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_finds_nothing_says_so() {
    let server = Server::start().await;
    server.add_audit([summary(0)]);
    let done = herald(&server.url, &["audit", "--since", "1h"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stdout.contains("nothing is missing, nothing is extra"),
        "{done:?}"
    );
    assert!(
        done.stdout
            .contains("2 posts and 1,045 entries compared with the timelines"),
        "{done:?}"
    );
    let request = server.call::<RunAuditRequest>();
    assert!(request.since_time.is_some() && request.post_id == 0 && !request.repair);
}

#[tokio::test(flavor = "multi_thread")]
async fn findings_are_named_and_are_exit_code_1() {
    let server = Server::start().await;
    let events = || (1..=25).map(lost).chain([summary(25)]);
    server.add_audit(events());
    let done = herald(&server.url, &["audit", "--post", "17"]).await;
    assert_eq!(done.code, 1, "{done:?}");
    let named = "lost post 17 push user u1: planned and pending";
    assert!(done.stdout.starts_with(named), "{done:?}");
    // Text output has the first 20 findings of a kind, and a hint for the rest.
    assert_eq!(done.stdout.matches("lost post 17").count(), 20, "{done:?}");
    assert!(done.stdout.contains("findings: 25 lost"), "{done:?}");
    assert!(done.stderr.contains("--all"), "{done:?}");
    assert_eq!(server.call::<RunAuditRequest>().post_id, 17);

    server.add_audit(events());
    let done = herald(&server.url, &["audit", "--all"]).await;
    assert_eq!(done.stdout.matches("lost post 17").count(), 25, "{done:?}");

    server.add_audit(events());
    let done = herald(&server.url, &["audit", "--output", "json"]).await;
    let lines: Vec<Value> = done
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((done.code, lines.len()), (1, 26), "{done:?}");
    assert_eq!(lines[0]["finding"]["user_id"], "u1");
    assert_eq!(lines[25]["summary"]["findings_by_kind"], json!({"lost": 25}));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_without_a_summary_is_a_failure() {
    let server = Server::start().await;
    server.add_audit([]);
    let done = herald(&server.url, &["audit"]).await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("the audit is incomplete"), "{done:?}");
}
