//! The gRPC server of DeadLetterService.

mod audit;
mod details;
mod filter;
mod preview;
mod rebuild;
mod responses;
mod select;
mod user_data;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, stream};
use herald_failure::Classify as _;
use herald_mesh::Mesh;
use herald_model::{parse_push_ttl, time::Timestamp};
use herald_proto::v1::{self, dead_letter_service_server::DeadLetterService};
use herald_rpc::{
    paging::{self, PageToken},
    status,
};
use herald_store::{
    DeadLetterGroups, DeadLetterId, DeadLetters, ErrorKind, Ledger, NewOperation, Operation, OperationId,
    OperationKind, OperationState, Order, Users,
};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, metadata::MetadataMap};

pub(crate) use audit::AuditApi;
pub(crate) use user_data::UserDataApi;

use crate::{
    Config, convert,
    domain::throttle::{RATE_DEFAULT, RATE_MAX},
    error::StepError,
    grpc::{preview::Preview, select::Purpose},
    redrive::OperationRunner,
};

const PAGE_SIZE_DEFAULT: usize = 100;
const PAGE_SIZE_MAX: usize = 1_000;
/// Failures that stop a redrive whose request has no `failures_max`.
const FAILURES_MAX_DEFAULT: u32 = 100;
/// Interval between two reads of a redrive's progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Retry delay in the error of a redrive that is refused because too many run.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(10);
/// The request metadata that names who acts.
const ACTOR: &str = "herald-actor";
/// Longest name in the audit log, bytes. A longer one is recorded as `unknown`.
const ACTOR_BYTES_MAX: usize = 128;

/// Implements DeadLetterService.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) mesh: Mesh,
    pub(crate) dead_letters: Arc<dyn DeadLetters>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) users: Arc<dyn Users>,
    pub(crate) runner: OperationRunner,
    pub(crate) descriptors: prost_reflect::DescriptorPool,
    pub(crate) config: Config,
    pub(crate) stop: CancellationToken,
}

type ProgressStream = Pin<Box<dyn Stream<Item = Result<v1::RedriveDeadLettersResponse, Status>> + Send>>;

#[tonic::async_trait]
impl DeadLetterService for Api {
    async fn list_dead_letters(
        &self,
        request: Request<v1::ListDeadLettersRequest>,
    ) -> Result<Response<v1::ListDeadLettersResponse>, Status> {
        let request = request.into_inner();
        let page_size = paging::page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
        let proto_filter = request.filter.unwrap_or_default();
        let order = if request.oldest_first {
            Order::OldestFirst
        } else {
            Order::NewestFirst
        };
        let identity = paging::identity([
            &proto_filter.encode_to_vec()[..],
            &[u8::from(request.oldest_first)],
        ]);
        let after = PageToken::decode_u64("ListDeadLetters", identity, &request.page_token)?;
        let Some(filter) = self.parse_filter("filter", proto_filter).await? else {
            return Ok(Response::new(v1::ListDeadLettersResponse::default()));
        };

        // One more than the page shows whether there is a next page.
        let mut after = after.map(DeadLetterId);
        let mut found = Vec::new();
        while found.len() <= page_size {
            let left = page_size + 1 - found.len();
            let page = self.dead_letters.scan(&filter, order, after, left).await;
            let page = page.map_err(|e| status::from_store(&e))?;
            found.extend(page.dead_letters);
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let more = found.len() > page_size;
        found.truncate(page_size);
        let next_page_token = match found.last() {
            Some(last) if more => PageToken::encode_u64("ListDeadLetters", identity, last.id.0),
            _ => String::new(),
        };
        Ok(Response::new(v1::ListDeadLettersResponse {
            dead_letters: self.to_proto_list(found).await?,
            next_page_token,
        }))
    }

    async fn list_groups(
        &self,
        request: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        let request = request.into_inner();
        let page_size = paging::page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
        let filter = request.filter.unwrap_or_default();
        let groups = match self.parse_filter("filter", filter).await? {
            Some(filter) => self.dead_letters.groups(&filter).await,
            None => Ok(DeadLetterGroups::default()),
        };
        let groups = groups.map_err(|e| status::from_store(&e))?;
        let dead_letter_count = groups.dead_letters();
        let groups = groups.into_largest_first();
        Ok(Response::new(v1::ListGroupsResponse {
            group_count: groups.len() as u64,
            dead_letter_count,
            groups: groups
                .into_iter()
                .take(page_size)
                .map(convert::group_to_proto)
                .collect(),
        }))
    }

    async fn get_dead_letter(
        &self,
        request: Request<v1::GetDeadLetterRequest>,
    ) -> Result<Response<v1::GetDeadLetterResponse>, Status> {
        let dead_letter = self.get_by_id(request.into_inner().dead_letter_id).await?;
        self.details(dead_letter).await.map(Response::new)
    }

    async fn list_undelivered_recipients(
        &self,
        request: Request<v1::ListUndeliveredRecipientsRequest>,
    ) -> Result<Response<v1::ListUndeliveredRecipientsResponse>, Status> {
        let request = request.into_inner();
        let page_size = paging::page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
        let after = details::parse_undelivered_page_token(request.dead_letter_id, &request.page_token)?;
        let dead_letter = self.get_by_id(request.dead_letter_id).await?;
        let entry = self.dlq_entry(dead_letter.id).await?;
        let undelivered = self.undelivered(&dead_letter, entry.as_ref()).await?;
        let (recipients, next_page_token) = self
            .undelivered_page(&dead_letter, &undelivered, after, page_size)
            .await?;
        Ok(Response::new(v1::ListUndeliveredRecipientsResponse {
            recipients,
            next_page_token,
        }))
    }

    type RedriveDeadLettersStream = ProgressStream;

    async fn redrive_dead_letters(
        &self,
        request: Request<v1::RedriveDeadLettersRequest>,
    ) -> Result<Response<ProgressStream>, Status> {
        let actor = actor(request.metadata());
        let request = request.into_inner();
        if request.rate_max > RATE_MAX {
            let description = format!("must be at most {RATE_MAX}, is {}", request.rate_max);
            return Err(status::invalid(&[("rate_max", description.as_str())]));
        }
        let push_ttl = request.push_ttl.map(|ttl| parse_push_ttl(ttl.seconds, ttl.nanos));
        let push_ttl = push_ttl
            .transpose()
            .map_err(|description| status::invalid(&[("push_ttl", description)]))?;
        let selection = request.selection.unwrap_or_default();
        let mut operation = NewOperation {
            kind: OperationKind::Redrive,
            actor,
            at: Timestamp::now(),
            selection: selection.encode_to_vec().into(),
            excluded: 0,
            rate_max: match request.rate_max {
                0 => RATE_DEFAULT,
                rate_max => rate_max,
            },
            failures_max: request.failures_max.unwrap_or(FAILURES_MAX_DEFAULT),
            push_ttl,
            target: None,
        };
        if request.dry_run {
            let mut preview = Preview::new(&operation);
            let excluded = self.select(selection, Purpose::Redrive, &mut preview).await?;
            let redrive = v1::Redrive {
                state: v1::DeadLetterOperationState::Unspecified.into(),
                selected_count: preview.selected(),
                excluded_count: excluded,
                expired_count: preview.expired,
                rate_max: operation.rate_max,
                failures_max: operation.failures_max,
                push_ttl: push_ttl.map(convert::duration_to_proto),
                actor: operation.actor.clone(),
                ..v1::Redrive::default()
            };
            let (groups, group_count) = preview.into_groups();
            let answer = v1::RedriveDeadLettersResponse {
                redrive: Some(redrive),
                groups,
                group_count,
            };
            return Ok(Response::new(Box::pin(stream::iter([Ok(answer)]))));
        }
        let mut selected = Vec::new();
        operation.excluded = self.select(selection, Purpose::Redrive, &mut selected).await?;
        let api = self.clone();
        let begun = run_to_completion(async move {
            let begun = api
                .dead_letters
                .begin_below(&operation, &selected, api.config.redrives_max as u64)
                .await
                .map_err(begin_error)?;
            tracing::info!(
                redrive_id = begun.id.0,
                dead_letters = begun.selected,
                actor = operation.actor,
                "redrive started"
            );
            api.runner.announce();
            Ok(begun)
        })
        .await?;
        Ok(Response::new(self.progress(begun)))
    }

    async fn get_redrive(
        &self,
        request: Request<v1::GetRedriveRequest>,
    ) -> Result<Response<v1::GetRedriveResponse>, Status> {
        let operation = self.get_redrive_by_id(request.into_inner().redrive_id).await?;
        Ok(Response::new(v1::GetRedriveResponse {
            redrive: Some(convert::redrive_to_proto(&operation, Timestamp::now())),
        }))
    }

    async fn cancel_redrive(
        &self,
        request: Request<v1::CancelRedriveRequest>,
    ) -> Result<Response<v1::CancelRedriveResponse>, Status> {
        let actor = actor(request.metadata());
        let operation = self.get_redrive_by_id(request.into_inner().redrive_id).await?;
        let operation = if operation.state == OperationState::Running {
            let api = self.clone();
            run_to_completion(async move {
                let at = Timestamp::now();
                let reason = format!("stopped by {actor}");
                let cancel = NewOperation {
                    kind: OperationKind::Cancel,
                    actor,
                    at,
                    selection: bytes::Bytes::new(),
                    excluded: 0,
                    rate_max: 0,
                    failures_max: 0,
                    push_ttl: None,
                    target: Some(operation.id),
                };
                let begun = api.dead_letters.begin(&cancel, &[]).await;
                begun.map_err(StepError::from)?;
                let stopped = api
                    .dead_letters
                    .finish(operation.id, OperationState::Cancelled, &reason, at);
                Ok(stopped.await.map_err(StepError::from)?)
            })
            .await?
        } else {
            operation
        };
        Ok(Response::new(v1::CancelRedriveResponse {
            redrive: Some(convert::redrive_to_proto(&operation, Timestamp::now())),
        }))
    }

    async fn discard_dead_letters(
        &self,
        request: Request<v1::DiscardDeadLettersRequest>,
    ) -> Result<Response<v1::DiscardDeadLettersResponse>, Status> {
        let actor = actor(request.metadata());
        let request = request.into_inner();
        let selection = request.selection.unwrap_or_default();
        let operation = NewOperation {
            kind: OperationKind::Discard,
            actor,
            at: Timestamp::now(),
            selection: selection.encode_to_vec().into(),
            excluded: 0,
            rate_max: 0,
            failures_max: 0,
            push_ttl: None,
            target: None,
        };
        if request.dry_run {
            let mut preview = Preview::new(&operation);
            self.select(selection, Purpose::Discard, &mut preview).await?;
            let discarded_count = preview.selected();
            let (groups, group_count) = preview.into_groups();
            return Ok(Response::new(v1::DiscardDeadLettersResponse {
                discarded_count,
                groups,
                group_count,
            }));
        }
        let mut selected = Vec::new();
        self.select(selection, Purpose::Discard, &mut selected).await?;
        let api = self.clone();
        let done = run_to_completion(async move {
            let begun = api.dead_letters.begin(&operation, &selected).await;
            let mut now = begun.map_err(StepError::from)?;
            while now.state == OperationState::Running {
                now = match api.runner.discard_batch(now.id).await {
                    Ok(now) => now,
                    Err(error) => {
                        // The holder of the lease discards the rest, or stops the operation if the error is permanent.
                        api.runner.announce();
                        return Err(interrupted_discard(&now, error));
                    }
                };
            }
            tracing::info!(
                operation_id = now.id.0,
                dead_letters = now.applied(),
                actor = operation.actor,
                "dead letters discarded"
            );
            Ok(now)
        })
        .await?;
        Ok(Response::new(v1::DiscardDeadLettersResponse {
            discarded_count: done.applied(),
            ..v1::DiscardDeadLettersResponse::default()
        }))
    }

    async fn list_operations(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsResponse>, Status> {
        let request = request.into_inner();
        let page_size = paging::page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
        let before = PageToken::decode_u64("ListOperations", 0, &request.page_token)?.map(OperationId);
        let operations = self.dead_letters.operations(before, page_size + 1).await;
        let mut operations = operations.map_err(|e| status::from_store(&e))?;
        let more = operations.len() > page_size;
        operations.truncate(page_size);
        let next_page_token = match operations.last() {
            Some(last) if more => PageToken::encode_u64("ListOperations", 0, last.id.0),
            _ => String::new(),
        };
        Ok(Response::new(v1::ListOperationsResponse {
            operations: self.operations_to_proto(&operations).await?,
            next_page_token,
        }))
    }
}

impl Api {
    /// Reads a redrive. `NOT_FOUND` for an unknown id and for another kind of operation.
    async fn get_redrive_by_id(&self, id: u64) -> Result<Operation, Status> {
        let id = convert::parse_operation_id(id)
            .ok_or_else(|| status::invalid(&[("redrive_id", "must be given")]))?;
        let operation = self.dead_letters.operation(id).await;
        operation
            .map_err(|e| status::from_store(&e))?
            .filter(|operation| operation.what.kind == OperationKind::Redrive)
            .ok_or_else(|| status::not_found("REDRIVE_NOT_FOUND", format!("there is no redrive {}", id.0)))
    }

    /// Streams the progress of a redrive at each change until the redrive is over.
    fn progress(&self, begun: Operation) -> ProgressStream {
        let api = self.clone();
        let first = Some((begun, None::<Operation>));
        Box::pin(stream::try_unfold(first, move |state| {
            let api = api.clone();
            async move {
                let Some((mut operation, reported)) = state else {
                    return Ok(None);
                };
                while reported.as_ref() == Some(&operation) {
                    let tick = tokio::time::sleep(PROGRESS_INTERVAL);
                    if api.stop.run_until_cancelled(tick).await.is_none() {
                        let message = format!(
                            "the service is shutting down; redrive {} goes on at another instance or at the next start",
                            operation.id.0
                        );
                        return Err(status::unavailable("SHUTTING_DOWN", message));
                    }
                    let now = api.dead_letters.operation(operation.id).await;
                    operation = now.map_err(|e| status::from_store(&e))?.unwrap_or(operation);
                }
                let answer = v1::RedriveDeadLettersResponse {
                    redrive: Some(convert::redrive_to_proto(&operation, Timestamp::now())),
                    ..v1::RedriveDeadLettersResponse::default()
                };
                let next = (!operation.is_over()).then(|| (operation.clone(), Some(operation)));
                Ok(Some((answer, next)))
            }
        }))
    }
}

/// The status of a discard that failed after it had begun. Names the operation, because the server goes on with it.
fn interrupted_discard(operation: &Operation, error: StepError) -> Status {
    let rest = if error.is_transient() {
        "the server discards the others in the background"
    } else {
        "the others stay open"
    };
    let status = Status::from(error);
    let message = format!(
        "{}; operation {} has discarded {} of {} dead letters, {rest}",
        status.message(),
        operation.id.0,
        operation.applied(),
        operation.selected,
    );
    Status::with_details(status.code(), message, status.details().to_vec().into())
}

/// Runs a future to completion in a task of its own: a caller that disconnects doesn't cancel it.
async fn run_to_completion<T: Send + 'static>(
    operation: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(operation)
        .await
        .map_err(|error| status::internal(&error))?
}

/// The status of a redrive that could not begin.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn begin_error(error: herald_store::Error) -> Status {
    match error.kind() {
        ErrorKind::LimitExceeded => {
            status::exhausted("TOO_MANY_REDRIVES", error.to_string(), BUSY_RETRY_AFTER)
        }
        _ => status::from_store(&error),
    }
}

/// The name of the caller who acts, from the request metadata; `unknown` without a valid one.
fn actor(metadata: &MetadataMap) -> String {
    metadata
        .get(ACTOR)
        .and_then(|actor| actor.to_str().ok())
        .map(str::trim)
        .filter(|actor| (1..=ACTOR_BYTES_MAX).contains(&actor.len()))
        .map_or_else(|| "unknown".into(), Into::into)
}
