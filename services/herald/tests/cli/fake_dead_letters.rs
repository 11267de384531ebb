//! A fake DeadLetterService.

use herald_proto::v1::{dead_letter_service_server::DeadLetterService, *};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use crate::server::{RpcResult, RpcStream, Server, time};

fn dead_letter() -> DeadLetter {
    DeadLetter {
        dead_letter_id: 17,
        state: DeadLetterState::Open.into(),
        stream: "PUSH".into(),
        consumer: "push-normal".into(),
        kind: "push".into(),
        sequence: 5,
        subject: "push.v1.deliver.normal".into(),
        message_type: "herald.mesh.v1.PushChunk".into(),
        cause: DeadLetterCause::Terminated.into(),
        reason: "push failed: webhook status 503: 2 \u{1b}[2J".into(),
        group_id: "8c51a3f2b7d90e64".into(),
        attempt_count: 20,
        publish_time: Some(time(0)),
        first_failure_time: Some(time(1)),
        last_failure_time: Some(time(2)),
        post_id: 9,
        author_id: "107".into(),
        channel: Channel::Push.into(),
        lane: Lane::Normal.into(),
        recipient_count: 3,
        undelivered_count: 2,
        payload: DeadLetterPayload::Kept.into(),
        payload_byte_count: 7,
        ..DeadLetter::default()
    }
}

fn group() -> DeadLetterGroup {
    DeadLetterGroup {
        group_id: "8c51a3f2b7d90e64".into(),
        kind: "push".into(),
        cause: DeadLetterCause::Terminated.into(),
        reason: "push failed: webhook status 503: #".into(),
        dead_letter_count: 1_234,
        first_failure_time: Some(time(1)),
        last_failure_time: Some(time(2)),
        example_dead_letter_id: 17,
    }
}

pub(crate) fn redrive(
    state: DeadLetterOperationState,
    resolved: u64,
    failed: u64,
    in_flight: u64,
) -> Redrive {
    Redrive {
        redrive_id: 4,
        state: state.into(),
        selected_count: 3,
        sent_count: resolved + failed + in_flight,
        resolved_count: resolved,
        failed_count: failed,
        in_flight_count: in_flight,
        actor: "ann@laptop".into(),
        create_time: Some(time(0)),
        ..Redrive::default()
    }
}

fn operation() -> DeadLetterOperation {
    DeadLetterOperation {
        operation_id: 4,
        kind: DeadLetterOperationKind::Redrive.into(),
        actor: "ann@laptop".into(),
        create_time: Some(time(0)),
        selection: Some(DeadLetterSelection {
            filter: Some(DeadLetterFilter {
                stream: "PUSH".into(),
                ..DeadLetterFilter::default()
            }),
            ..DeadLetterSelection::default()
        }),
        selected_count: 3,
        redrive: Some(redrive(DeadLetterOperationState::Done, 3, 0, 0)),
        ..DeadLetterOperation::default()
    }
}

#[tonic::async_trait]
impl DeadLetterService for Server {
    async fn list_dead_letters(
        &self,
        request: Request<ListDeadLettersRequest>,
    ) -> RpcResult<ListDeadLettersResponse> {
        let first = self.record(request)?.page_token.is_empty();
        Ok(Response::new(ListDeadLettersResponse {
            dead_letters: if first { vec![dead_letter()] } else { Vec::new() },
            next_page_token: if first { "NEXT".into() } else { String::new() },
        }))
    }

    async fn list_groups(&self, request: Request<ListGroupsRequest>) -> RpcResult<ListGroupsResponse> {
        self.record(request)?;
        Ok(Response::new(ListGroupsResponse {
            groups: vec![group()],
            group_count: 1,
            dead_letter_count: 1_234,
        }))
    }

    async fn get_dead_letter(
        &self,
        request: Request<GetDeadLetterRequest>,
    ) -> RpcResult<GetDeadLetterResponse> {
        self.record(request)?;
        Ok(Response::new(GetDeadLetterResponse {
            dead_letter: Some(dead_letter()),
            payload: b"payload".into(),
            payload_json: r#"{"postId":"9"}"#.into(),
            headers: vec![DeadLetterHeader {
                name: "Herald-Type".into(),
                value: "herald.mesh.v1.PushChunk".into(),
            }],
            undelivered_user_ids: vec!["bob".into()],
            next_undelivered_page_token: "UNDELIVERED".into(),
            operations: vec![operation()],
        }))
    }

    async fn list_undelivered_recipients(
        &self,
        request: Request<ListUndeliveredRecipientsRequest>,
    ) -> RpcResult<ListUndeliveredRecipientsResponse> {
        assert_eq!(self.record(request)?.page_token, "UNDELIVERED");
        Ok(Response::new(ListUndeliveredRecipientsResponse {
            recipients: vec![UndeliveredRecipient {
                user_id: "cat".into(),
                state: DeliveryState::Dead.into(),
            }],
            next_page_token: String::new(),
        }))
    }

    type RedriveDeadLettersStream = RpcStream<RedriveDeadLettersResponse>;

    async fn redrive_dead_letters(
        &self,
        request: Request<RedriveDeadLettersRequest>,
    ) -> RpcResult<Self::RedriveDeadLettersStream> {
        self.record_actor(&request);
        let dry_run = self.record(request)?.dry_run;
        let progress = self.next_redrive();
        let broken = !dry_run
            && progress
                .last()
                .is_some_and(|last| last.state() == DeadLetterOperationState::Running);
        let answers = progress.into_iter().map(move |redrive| {
            Ok(RedriveDeadLettersResponse {
                redrive: Some(redrive),
                groups: if dry_run { vec![group()] } else { Vec::new() },
                group_count: if dry_run { 3 } else { 0 },
            })
        });
        let end = broken.then(|| Err(Status::unavailable("the server goes away")));
        Ok(Response::new(Box::pin(
            tokio_stream::iter(answers).chain(tokio_stream::iter(end)),
        )))
    }

    async fn get_redrive(&self, _: Request<GetRedriveRequest>) -> RpcResult<GetRedriveResponse> {
        Err(Status::unimplemented("not used by the command line"))
    }

    async fn cancel_redrive(
        &self,
        request: Request<CancelRedriveRequest>,
    ) -> RpcResult<CancelRedriveResponse> {
        self.record_actor(&request);
        self.record(request)?;
        Ok(Response::new(CancelRedriveResponse {
            redrive: Some(Redrive {
                reason: "stopped by ann@laptop".into(),
                ..redrive(DeadLetterOperationState::Cancelled, 1, 0, 0)
            }),
        }))
    }

    async fn discard_dead_letters(
        &self,
        request: Request<DiscardDeadLettersRequest>,
    ) -> RpcResult<DiscardDeadLettersResponse> {
        self.record_actor(&request);
        let dry_run = self.record(request)?.dry_run;
        Ok(Response::new(DiscardDeadLettersResponse {
            discarded_count: 2,
            groups: if dry_run { vec![group()] } else { Vec::new() },
            group_count: u64::from(dry_run),
        }))
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> RpcResult<ListOperationsResponse> {
        self.record(request)?;
        Ok(Response::new(ListOperationsResponse {
            operations: vec![operation()],
            next_page_token: "NEXT".into(),
        }))
    }
}
