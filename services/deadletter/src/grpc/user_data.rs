//! The gRPC server of UserDataService.

use std::{pin::Pin, time::Duration};

use futures::{Stream, stream};
use herald_model::{Address, Device, Post};
use herald_proto::{
    timestamp_to_proto,
    v1::{self, export_user_response as export, user_data_service_server::UserDataService},
};
use herald_rpc::{
    fields,
    paging::{self, PageToken},
    status,
};
use herald_store::{Erasure, ErasureId};
use herald_user_data::{Error, Record, UserData};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, actor, responses::Responses, run_to_completion};
use crate::erasures::ErasureRunner;

/// Records between an export and its call.
const RECORDS_BUFFERED_MAX: usize = 64;
/// Interval between two readings of an erasure's progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

const LIST_ERASURES: &str = "ListErasures";

/// Implements UserDataService.
pub(crate) struct UserDataApi {
    pub(crate) runner: ErasureRunner,
    pub(crate) stop: CancellationToken,
}

type ExportStream = Pin<Box<dyn Stream<Item = Result<v1::ExportUserResponse, Status>> + Send>>;
type ErasureStream = Pin<Box<dyn Stream<Item = Result<v1::EraseUserResponse, Status>> + Send>>;

#[tonic::async_trait]
impl UserDataService for UserDataApi {
    type ExportUserStream = ExportStream;

    async fn export_user(
        &self,
        request: Request<v1::ExportUserRequest>,
    ) -> Result<Response<ExportStream>, Status> {
        let actor = actor(request.metadata());
        let id = fields::user_id("user_id", request.into_inner().user_id)?;
        let user_data = self.runner.user_data().clone();
        let found = user_data.find(&id).await.map_err(|e| error_to_status(&e))?;
        let user = found.ok_or_else(user_not_found)?;
        tracing::info!(user = user.0, actor, "a user is exported");
        let (records, mut received) = mpsc::channel(RECORDS_BUFFERED_MAX);
        let (mut responses, stream) = Responses::new(self.stop.clone());
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let exporting = async {
                let outcome = user_data.export(id, user, &records).await;
                drop(records);
                outcome
            };
            let sending = async {
                while let Some(record) = received.recv().await {
                    if !responses.send(Ok(record_to_v1(record))).await {
                        // A closed channel ends the export.
                        received.close();
                    }
                }
            };
            let last = match stop
                .run_until_cancelled(async { tokio::join!(exporting, sending).0 })
                .await
            {
                Some(Ok(()) | Err(Error::Abandoned)) => return,
                Some(Err(error)) => error_to_status(&error),
                None => status::unavailable("SHUTTING_DOWN", "the service is shutting down"),
            };
            responses.send(Err(last)).await;
        });
        Ok(Response::new(Box::pin(stream)))
    }

    type EraseUserStream = ErasureStream;

    async fn erase_user(
        &self,
        request: Request<v1::EraseUserRequest>,
    ) -> Result<Response<ErasureStream>, Status> {
        let actor = actor(request.metadata());
        let id = fields::user_id("user_id", request.into_inner().user_id)?;
        let runner = self.runner.clone();
        let begun = run_to_completion(async move {
            let begun = runner.user_data().begin(&id, &actor).await;
            let begun = begun
                .map_err(|e| error_to_status(&e))?
                .ok_or_else(user_not_found)?;
            tracing::info!(erasure_id = begun.id.0, actor, "erasure of a user requested");
            runner.announce();
            Ok(begun)
        })
        .await?;
        Ok(Response::new(self.progress(begun)))
    }

    async fn list_erasures(
        &self,
        request: Request<v1::ListErasuresRequest>,
    ) -> Result<Response<v1::ListErasuresResponse>, Status> {
        let request = request.into_inner();
        let size = paging::page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
        let before = PageToken::decode_u64(LIST_ERASURES, 0, &request.page_token)?.map(ErasureId);
        // One more than the page shows whether there is a next page.
        let erasures = &self.runner.user_data().stores.erasures;
        let page = erasures.list(before, size + 1).await;
        let mut page = page.map_err(|e| status::from_store(&e))?;
        let more = page.len() > size;
        page.truncate(size);
        let next_page_token = match page.last() {
            Some(last) if more => PageToken::encode_u64(LIST_ERASURES, 0, last.id.0),
            _ => String::new(),
        };
        Ok(Response::new(v1::ListErasuresResponse {
            erasures: page.into_iter().map(erasure_to_v1).collect(),
            next_page_token,
        }))
    }
}

impl UserDataApi {
    /// Streams an erasure at each change, from when every process has forgotten the user until it is complete.
    fn progress(&self, begun: Erasure) -> ErasureStream {
        let (user_data, stop) = (self.runner.user_data().clone(), self.stop.clone());
        let first = Some((begun, None::<Erasure>));
        Box::pin(stream::try_unfold(first, move |state| {
            let (user_data, stop) = (user_data.clone(), stop.clone());
            async move {
                let Some((mut erasure, reported)) = state else {
                    return Ok(None);
                };
                let id = erasure.id;
                if reported.is_none() {
                    let forgotten = stop.run_until_cancelled(user_data.until_forgotten(id)).await;
                    forgotten
                        .ok_or_else(|| shutting_down(id))?
                        .map_err(|e| error_to_status(&e))?;
                    erasure = read(&user_data, erasure).await?;
                }
                while reported.as_ref() == Some(&erasure) {
                    let tick = tokio::time::sleep(PROGRESS_INTERVAL);
                    if stop.run_until_cancelled(tick).await.is_none() {
                        return Err(shutting_down(id));
                    }
                    erasure = read(&user_data, erasure).await?;
                }
                let answer = v1::EraseUserResponse {
                    erasure: Some(erasure_to_v1(erasure.clone())),
                };
                let next = erasure
                    .completed_at
                    .is_none()
                    .then(|| (erasure.clone(), Some(erasure)));
                Ok(Some((answer, next)))
            }
        }))
    }
}

async fn read(user_data: &UserData, erasure: Erasure) -> Result<Erasure, Status> {
    let read = user_data.erasure(erasure.id).await;
    Ok(read.map_err(|e| error_to_status(&e))?.unwrap_or(erasure))
}

fn shutting_down(id: ErasureId) -> Status {
    let message = format!(
        "the service is shutting down; erasure {} goes on at another instance or at the next start",
        id.0
    );
    status::unavailable("SHUTTING_DOWN", message)
}

fn user_not_found() -> Status {
    status::not_found("USER_NOT_FOUND", "there is no such user")
}

fn error_to_status(error: &Error) -> Status {
    match error {
        Error::Store(error) => status::from_store(error),
        Error::Mesh(error) => status::from_mesh(error),
        Error::Unfinished | Error::NoErasure | Error::Abandoned => status::internal(error),
    }
}

fn erasure_to_v1(erasure: Erasure) -> v1::Erasure {
    let counts = erasure.counts;
    v1::Erasure {
        erasure_id: erasure.id.0,
        user_id: erasure
            .user_id
            .filter(|id| !id.is_placeholder())
            .map(herald_model::UserId::into_string)
            .unwrap_or_default(),
        actor: erasure.actor,
        request_time: Some(timestamp_to_proto(erasure.requested_at)),
        forget_time: erasure
            .forgotten
            .map(|forgotten| timestamp_to_proto(forgotten.at)),
        complete_time: erasure.completed_at.map(timestamp_to_proto),
        counts: Some(v1::ErasedCounts {
            post_count: counts.posts,
            follow_count: counts.follows,
            device_count: counts.devices,
            timeline_entry_count: counts.timeline_entries,
            message_count: counts.messages,
            dead_letter_count: counts.dead_letters,
        }),
    }
}

fn record_to_v1(record: Record) -> v1::ExportUserResponse {
    let record = match record {
        Record::User(id) => export::Record::User(v1::ExportedUser {
            user_id: id.into_string(),
        }),
        Record::Preferences { push_enabled } => {
            export::Record::Preferences(v1::ExportedPreferences { push_enabled })
        }
        Record::Device(device) => export::Record::Device(device_to_v1(&device)),
        Record::Following { author, notify } => export::Record::Following(v1::ExportedFollow {
            user_id: author.into_string(),
            notify,
        }),
        Record::Follower { follower, notify } => export::Record::Follower(v1::ExportedFollow {
            user_id: follower.into_string(),
            notify,
        }),
        Record::MutedAuthor(author) => export::Record::MutedAuthor(v1::ExportedMutedAuthor {
            author_id: author.into_string(),
        }),
        Record::Post(post) => export::Record::Post(post_to_v1(*post)),
        Record::TimelineEntry(post) => {
            export::Record::TimelineEntry(v1::ExportedTimelineEntry { post_id: post.0 })
        }
    };
    v1::ExportUserResponse { record: Some(record) }
}

/// Without keys and secrets.
fn device_to_v1(device: &Device) -> v1::ExportedDevice {
    let kind = match device.address {
        Address::WebPush { .. } => v1::ExportedDeviceKind::WebPush,
        Address::Webhook { .. } => v1::ExportedDeviceKind::Webhook,
    };
    let state = match device.disabled {
        None => v1::DeviceState::Enabled,
        Some(_) => v1::DeviceState::Disabled,
    };
    v1::ExportedDevice {
        device_id: device.id.0.to_string(),
        kind: kind.into(),
        endpoint: device.address.url().to_owned(),
        state: state.into(),
        registered_time: Some(timestamp_to_proto(device.registered_at)),
    }
}

fn post_to_v1(post: Post) -> v1::ExportedPost {
    let deleted_time = post.deleted_at.map(timestamp_to_proto);
    v1::ExportedPost {
        post: Some(post.into()),
        deleted_time,
    }
}
