//! DeliveryService.

use std::sync::Arc;

use herald_model::{Channel, DeliveryState, DeviceId, PostId, UserId, UserKey};
use herald_posts::PostReader;
use herald_proto::v1::{self, delivery_service_server::DeliveryService};
use herald_rpc::{
    fields::Violations,
    paging::{self, PageToken},
    status,
};
use herald_store::{
    ChannelCounts, Ledger, PostCounts, PushFailure, RecipientStatus, SuppressedReason, Users,
};
use tonic::{Request, Response, Status};

use super::post::{parse_post_id, post_not_found};
use crate::error::read_error_to_status;

const LIST_RECIPIENTS: &str = "ListRecipients";
const PAGE_SIZE_DEFAULT: usize = 100;
const PAGE_SIZE_MAX: usize = 1_000;

/// Implements DeliveryService.
pub(crate) struct DeliveryApi {
    users: Arc<dyn Users>,
    ledger: Arc<dyn Ledger>,
    reader: PostReader,
}

impl DeliveryApi {
    pub(crate) fn new(users: Arc<dyn Users>, ledger: Arc<dyn Ledger>, reader: PostReader) -> Self {
        Self {
            users,
            ledger,
            reader,
        }
    }

    /// Reads one recipient; `None` if the user is not a recipient of the post on this channel.
    async fn find_recipient(
        &self,
        post: PostId,
        channel: Channel,
        user: UserKey,
    ) -> Result<Option<RecipientStatus>, Status> {
        // User keys begin at 1.
        let before = UserKey(user.0.saturating_sub(1));
        let found = self.ledger.recipients(post, channel, None, Some(before), 1).await;
        let found = found.map_err(|e| status::from_store(&e))?;
        Ok(found.into_iter().find(|recipient| recipient.user == user))
    }

    /// Reads the counts of a post: zeros if its fan-out is not planned yet, NOT_FOUND if there is no such post.
    async fn read_counts(&self, id: PostId) -> Result<PostCounts, Status> {
        if let Some(counts) = self.ledger.counts(id).await.map_err(|e| status::from_store(&e))? {
            return Ok(counts);
        }
        match self
            .reader
            .read_one(id)
            .await
            .map_err(|e| read_error_to_status(&e))?
        {
            Some(_) => Ok(PostCounts::default()),
            None => Err(post_not_found(id)),
        }
    }
}

fn channel_to_v1(channel: Channel, counts: ChannelCounts) -> v1::ChannelDelivery {
    v1::ChannelDelivery {
        channel: v1::Channel::from(channel).into(),
        targeted_count: counts.targeted,
        delivered_count: counts.delivered,
        suppressed_count: counts.suppressed,
        expired_count: counts.expired,
        pending_count: counts.pending,
        dead_count: counts.dead,
        first_delivered_time: counts.first_delivered_at.map(herald_proto::timestamp_to_proto),
        last_delivered_time: counts.last_delivered_at.map(herald_proto::timestamp_to_proto),
        suppressed_counts: counts
            .suppressed_by
            .iter()
            .map(|(reason, count)| v1::SuppressedCount {
                reason: reason_to_v1(reason).into(),
                count,
            })
            .collect(),
    }
}

const fn reason_to_v1(reason: SuppressedReason) -> v1::SuppressedReason {
    match reason {
        SuppressedReason::NoDevice => v1::SuppressedReason::NoDevice,
        SuppressedReason::Muted => v1::SuppressedReason::Muted,
        SuppressedReason::PushOff => v1::SuppressedReason::PushOff,
        SuppressedReason::PostDeleted => v1::SuppressedReason::PostDeleted,
        SuppressedReason::DeviceGone => v1::SuppressedReason::DeviceGone,
        SuppressedReason::DeviceDisabled => v1::SuppressedReason::DeviceDisabled,
        SuppressedReason::UnknownUser => v1::SuppressedReason::UnknownUser,
        SuppressedReason::Inactive => v1::SuppressedReason::Inactive,
        SuppressedReason::Drowning => v1::SuppressedReason::Drowning,
    }
}

fn recipient_to_v1(status: RecipientStatus, user_id: String) -> v1::Recipient {
    let id = |device: DeviceId| device.0.to_string();
    let failure = |device: Option<DeviceId>, failure: PushFailure| v1::DeviceFailure {
        device_id: device.map(id).unwrap_or_default(),
        host: failure.host,
        reason: failure.reason,
    };
    let reason = status.suppressed.map(reason_to_v1);
    v1::Recipient {
        user_id,
        state: v1::DeliveryState::from(status.state).into(),
        suppressed_reason: reason.unwrap_or_default().into(),
        accepted_device_ids: status.done.into_iter().map(id).collect(),
        waiting_devices: status
            .waiting
            .into_iter()
            .map(|retry| v1::WaitingDevice {
                failure: Some(failure(Some(retry.device), retry.failure)),
                attempt_count: retry.attempts,
                next_attempt_time: Some(herald_proto::timestamp_to_proto(retry.next_at)),
            })
            .collect(),
        failures: status
            .failures
            .into_iter()
            .map(|failed| failure(failed.device, failed.failure))
            .collect(),
    }
}

fn channel_from_v1(channel: i32) -> Result<Channel, &'static str> {
    match v1::Channel::try_from(channel) {
        Ok(v1::Channel::Timeline) => Ok(Channel::Timeline),
        Ok(v1::Channel::Push) => Ok(Channel::Push),
        Ok(v1::Channel::Unspecified) | Err(_) => Err("must be CHANNEL_TIMELINE or CHANNEL_PUSH"),
    }
}

fn state_from_v1(state: i32) -> Result<Option<DeliveryState>, &'static str> {
    match v1::DeliveryState::try_from(state) {
        Ok(v1::DeliveryState::Unspecified) => Ok(None),
        Ok(state) => Ok(DeliveryState::ALL
            .into_iter()
            .find(|s| v1::DeliveryState::from(*s) == state)),
        Err(_) => Err("must be a DeliveryState"),
    }
}

#[tonic::async_trait]
impl DeliveryService for DeliveryApi {
    async fn get_delivery(
        &self,
        request: Request<v1::GetDeliveryRequest>,
    ) -> Result<Response<v1::GetDeliveryResponse>, Status> {
        let id = parse_post_id(request.into_inner().post_id)?;
        let counts = self.read_counts(id).await?;
        Ok(Response::new(v1::GetDeliveryResponse {
            post_id: id.0,
            planned: counts.planned,
            channels: vec![
                channel_to_v1(Channel::Timeline, counts.timeline),
                channel_to_v1(Channel::Push, counts.push),
            ],
        }))
    }

    async fn list_recipients(
        &self,
        request: Request<v1::ListRecipientsRequest>,
    ) -> Result<Response<v1::ListRecipientsResponse>, Status> {
        let request = request.into_inner();
        let mut violations = Violations::new();
        violations.check("post_id", request.post_id != 0, "must not be 0");
        let channel = violations.take("channel", channel_from_v1(request.channel));
        let state = violations.take("state", state_from_v1(request.state));
        violations.check("page_size", request.page_size >= 0, "must not be negative");
        violations.into_result()?;
        let id = PostId(request.post_id);
        let (Some(channel), Some(state)) = (channel, state) else {
            return Err(status::invalid(&[("channel", "is not valid")]));
        };
        let page_size = paging::page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
        let identity = paging::identity([
            &id.0.to_be_bytes()[..],
            channel.as_str().as_bytes(),
            state.map_or("any", DeliveryState::as_str).as_bytes(),
        ]);
        let after = match PageToken::decode_u64(LIST_RECIPIENTS, identity, &request.page_token)? {
            None => None,
            Some(key) => match u32::try_from(key) {
                Ok(key) => Some(UserKey(key)),
                Err(_) => return Err(status::invalid(&[("page_token", "is not a page token")])),
            },
        };
        // One extra recipient shows whether there is a next page.
        let ledger = &self.ledger;
        let page = ledger.recipients(id, channel, state, after, page_size + 1).await;
        let mut page = page.map_err(|e| status::from_store(&e))?;
        if page.is_empty() && after.is_none() {
            // Distinguishes a post without recipients from an unknown post.
            self.read_counts(id).await?;
        }
        let more = page.len() > page_size;
        page.truncate(page_size);
        let next_page_token = match page.last() {
            Some(last) if more => PageToken::encode_u64(LIST_RECIPIENTS, identity, last.user.0.into()),
            _ => String::new(),
        };
        let keys: Vec<_> = page.iter().map(|recipient| recipient.user).collect();
        let ids = self.users.ids(&keys).await.map_err(|e| status::from_store(&e))?;
        let recipients = page
            .into_iter()
            .zip(ids)
            .map(|(recipient, id)| {
                recipient_to_v1(recipient, id.map(UserId::into_string).unwrap_or_default())
            })
            .collect();
        Ok(Response::new(v1::ListRecipientsResponse {
            recipients,
            next_page_token,
        }))
    }

    async fn explain_delivery(
        &self,
        request: Request<v1::ExplainDeliveryRequest>,
    ) -> Result<Response<v1::ExplainDeliveryResponse>, Status> {
        let v1::ExplainDeliveryRequest { post_id, user_id } = request.into_inner();
        let mut violations = Violations::new();
        violations.check("post_id", post_id != 0, "must not be 0");
        let user = violations.user_id("user_id", user_id.as_str());
        violations.into_result()?;
        let id = PostId(post_id);
        // Read before the recipients: if the plan is complete, so are they.
        let planned = self.read_counts(id).await?.planned;
        let key = match user {
            Some(user) => super::find_user(&*self.users, user).await?,
            None => None,
        };
        let (mut channels, mut extended_to) = (Vec::new(), None);
        for channel in [Channel::Timeline, Channel::Push] {
            if let Some(key) = key
                && let Some(status) = self.find_recipient(id, channel, key).await?
            {
                extended_to = extended_to.max(status.expires_at);
                channels.push(v1::ChannelRecipient {
                    channel: v1::Channel::from(channel).into(),
                    recipient: Some(recipient_to_v1(status, user_id.clone())),
                });
            }
        }
        let post = self.reader.read_one(id).await;
        let post = post.map_err(|e| read_error_to_status(&e))?;
        let push_expires_at = post.as_ref().map(|post| post.accepted_at.plus(post.push_ttl));
        let push_expires_at = push_expires_at.max(extended_to);
        Ok(Response::new(v1::ExplainDeliveryResponse {
            post_id,
            user_id,
            planned,
            author_id: post.map(|post| post.author_id.into_string()).unwrap_or_default(),
            push_expire_time: push_expires_at.map(herald_proto::timestamp_to_proto),
            channels,
        }))
    }
}
