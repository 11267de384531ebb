//! Converts dead letters and operations for responses, with data from elsewhere: author ids, payloads, and undelivered
//! recipients.
//!
//! A recipient is undelivered while the ledger has it as pending or dead.

use std::collections::HashMap;

use herald_failure::Classify as _;
use herald_mesh::streams;
use herald_model::{Channel, ChunkId, DeliveryState, PostId, Recipients, UserId, UserKey, time::Timestamp};
use herald_proto::{mesh_v1::DlqEntry, v1};
use herald_rpc::{
    paging::{self, PageToken},
    status,
};
use herald_store::{DeadLetter, DeadLetterId, Operation, OperationKind, Outcome};
use prost_reflect::DynamicMessage;
use tonic::Status;

use super::Api;
use crate::{convert, dlq_entry};

/// Undelivered recipients in the response of GetDeadLetter; ListUndeliveredRecipients has the rest.
const UNDELIVERED_PREVIEW_MAX: usize = 100;

const LIST_UNDELIVERED: &str = "ListUndeliveredRecipients";

/// Parses a page token of ListUndeliveredRecipients: the page starts after this user.
pub(super) fn parse_undelivered_page_token(dead_letter: u64, token: &str) -> Result<Option<UserKey>, Status> {
    let identity = paging::identity([&dead_letter.to_be_bytes()[..]]);
    let cursor = PageToken::decode_u64(LIST_UNDELIVERED, identity, token)?;
    cursor
        .map(|key| {
            u32::try_from(key)
                .map(UserKey)
                .map_err(|_| status::invalid(&[("page_token", "is not a page token")]))
        })
        .transpose()
}

impl Api {
    /// Reads a dead letter. `NOT_FOUND` for an unknown id.
    pub(super) async fn get_by_id(&self, id: u64) -> Result<DeadLetter, Status> {
        if id == 0 {
            return Err(status::invalid(&[("dead_letter_id", "must be given")]));
        }
        let dead_letters = self.dead_letters.get(&[DeadLetterId(id)]).await;
        let dead_letter = dead_letters
            .map_err(|e| status::from_store(&e))?
            .into_iter()
            .next();
        dead_letter.flatten().ok_or_else(|| {
            status::not_found("DEAD_LETTER_NOT_FOUND", format!("there is no dead letter {id}"))
        })
    }

    /// Reads the DLQ entry of a dead letter; `None` if it is no longer there or malformed.
    pub(super) async fn dlq_entry(&self, id: DeadLetterId) -> Result<Option<DlqEntry>, Status> {
        let message = self.mesh.message(streams::DLQ, id.0).await;
        let message = message.map_err(|e| status::from_mesh(&e))?;
        Ok(message.and_then(|message| message.decode().ok()))
    }

    /// Converts dead letters for a list.
    pub(super) async fn to_proto_list(
        &self,
        dead_letters: Vec<DeadLetter>,
    ) -> Result<Vec<v1::DeadLetter>, Status> {
        let mut keys: Vec<_> = dead_letters
            .iter()
            .filter_map(|dead_letter| dead_letter.author)
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let ids = self.user_ids(&keys).await?;
        let authors: HashMap<UserKey, String> = keys.into_iter().zip(ids).collect();
        let mut list = Vec::with_capacity(dead_letters.len());
        for dead_letter in dead_letters {
            let author = dead_letter
                .author
                .and_then(|author| authors.get(&author))
                .cloned();
            let undelivered = self.undelivered_count(&dead_letter).await?;
            list.push(convert::dead_letter_to_proto(
                dead_letter,
                author.unwrap_or_default(),
                undelivered,
            ));
        }
        Ok(list)
    }

    /// Builds the response of GetDeadLetter.
    pub(super) async fn details(&self, dead_letter: DeadLetter) -> Result<v1::GetDeadLetterResponse, Status> {
        let entry = self.dlq_entry(dead_letter.id).await?;
        let undelivered = self.undelivered(&dead_letter, entry.as_ref()).await?;
        let (recipients, next_undelivered_page_token) = self
            .undelivered_page(&dead_letter, &undelivered, None, UNDELIVERED_PREVIEW_MAX)
            .await?;
        let mut operations = Vec::with_capacity(dead_letter.operations.len());
        for operation in dead_letter.operations.iter().rev() {
            let operation = self.dead_letters.operation(*operation).await;
            operations.extend(operation.map_err(|e| status::from_store(&e))?);
        }
        let operations = self.operations_to_proto(&operations).await?;
        let entry = entry.unwrap_or_default();
        let converted = self.to_proto_list(vec![dead_letter]).await?;
        Ok(v1::GetDeadLetterResponse {
            dead_letter: converted.into_iter().next(),
            payload_json: self.payload_json(&entry).unwrap_or_default(),
            payload: entry.payload.into(),
            headers: entry
                .headers
                .into_iter()
                .map(|header| v1::DeadLetterHeader {
                    name: header.name,
                    value: header.value,
                })
                .collect(),
            undelivered_user_ids: recipients.into_iter().map(|one| one.user_id).collect(),
            next_undelivered_page_token,
            operations,
        })
    }

    /// Converts operations; a cancellation with the redrive that it stopped.
    pub(super) async fn operations_to_proto(
        &self,
        operations: &[Operation],
    ) -> Result<Vec<v1::DeadLetterOperation>, Status> {
        let now = Timestamp::now();
        let mut converted = Vec::with_capacity(operations.len());
        for operation in operations {
            let target = match (operation.what.kind, operation.what.target) {
                (OperationKind::Cancel, Some(target)) => {
                    let target = self.dead_letters.operation(target).await;
                    target.map_err(|e| status::from_store(&e))?
                }
                _ => None,
            };
            converted.push(convert::operation_to_proto(operation, target.as_ref(), now));
        }
        Ok(converted)
    }

    /// The payload of an entry as JSON; `None` if it is missing or malformed.
    fn payload_json(&self, entry: &DlqEntry) -> Option<String> {
        let subject = herald_mesh::Subject::parse(&entry.subject)?;
        let message = self.descriptors.get_message_by_name(subject.message_type())?;
        if entry.payload_state() != v1::DeadLetterPayload::Kept {
            return None;
        }
        let message = DynamicMessage::decode(message, entry.payload.clone()).ok()?;
        serde_json::to_string(&message).ok()
    }

    /// Counts the undelivered recipients of a dead letter.
    async fn undelivered_count(&self, dead_letter: &DeadLetter) -> Result<u32, Status> {
        let (Some(post), Some(channel), Some(chunk)) =
            (dead_letter.post, dead_letter.channel, dead_letter.chunk)
        else {
            return Ok(0);
        };
        let finished = match self.outcome(post, channel, chunk).await? {
            None => 0,
            Some(Outcome::Delivered { count }) => count,
            Some(Outcome::Mixed {
                delivered,
                suppressed,
                expired,
                details,
                ..
            }) => {
                // A waiting recipient is in a copy of the message, and not in its dead letter.
                let waiting = details.pending.iter().filter(|one| !one.waiting.is_empty());
                delivered.len() + suppressed.len() + expired.len() + waiting.count() as u32
            }
        };
        Ok(dead_letter.recipients.saturating_sub(finished))
    }

    /// The undelivered recipients of a dead letter, by user key, with their states.
    pub(super) async fn undelivered(
        &self,
        dead_letter: &DeadLetter,
        entry: Option<&DlqEntry>,
    ) -> Result<Vec<(UserKey, DeliveryState)>, Status> {
        let (Some(post), Some(channel), Some(chunk)) =
            (dead_letter.post, dead_letter.channel, dead_letter.chunk)
        else {
            return Ok(Vec::new());
        };
        let Some(recipients) = entry.and_then(dlq_entry::recipients) else {
            return Ok(Vec::new());
        };
        Ok(undelivered_recipients(
            &recipients,
            self.outcome(post, channel, chunk).await?,
        ))
    }

    /// Reads the outcome of a chunk from the ledger. A malformed row counts as a missing one: an operator must see the
    /// dead letter about it, and the others on its page.
    async fn outcome(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
    ) -> Result<Option<Outcome>, Status> {
        match self.ledger.outcome(post, channel, chunk).await {
            Ok(recorded) => Ok(recorded.map(|recorded| recorded.outcome)),
            Err(error) if !error.is_transient() => {
                tracing::warn!(
                    post_id = post.0,
                    %channel,
                    chunk_id = %chunk,
                    %error,
                    "malformed outcome of a chunk in the ledger; all of its recipients are shown as undelivered"
                );
                Ok(None)
            }
            Err(error) => Err(status::from_store(&error)),
        }
    }

    /// One page of undelivered recipients, and the token of the next page.
    pub(super) async fn undelivered_page(
        &self,
        dead_letter: &DeadLetter,
        undelivered: &[(UserKey, DeliveryState)],
        after: Option<UserKey>,
        page_size: usize,
    ) -> Result<(Vec<v1::UndeliveredRecipient>, String), Status> {
        let begin = undelivered.partition_point(|(user, _)| Some(*user) <= after);
        let rest = &undelivered[begin..];
        let page = &rest[..page_size.min(rest.len())];
        let keys: Vec<_> = page.iter().map(|(user, _)| *user).collect();
        let ids = self.user_ids(&keys).await?;
        let recipients = page
            .iter()
            .zip(ids)
            .map(|((_, state), user_id)| v1::UndeliveredRecipient {
                user_id,
                state: v1::DeliveryState::from(*state).into(),
            });
        let identity = paging::identity([&dead_letter.id.0.to_be_bytes()[..]]);
        let token = match page.last() {
            Some((last, _)) if rest.len() > page.len() => {
                PageToken::encode_u64(LIST_UNDELIVERED, identity, last.0.into())
            }
            _ => String::new(),
        };
        Ok((recipients.collect(), token))
    }

    /// Reads the ids of users; empty for an unknown key.
    async fn user_ids(&self, keys: &[UserKey]) -> Result<Vec<String>, Status> {
        let ids = self.users.ids(keys).await;
        let ids = ids.map_err(|e| status::from_store(&e))?.into_iter();
        Ok(ids
            .map(|id| id.map(UserId::into_string).unwrap_or_default())
            .collect())
    }
}

/// The recipients of a chunk that are dead, or pending and don't wait: a waiting one is in a copy of the message, and not
/// in its dead letter.
fn undelivered_recipients(
    recipients: &Recipients,
    outcome: Option<Outcome>,
) -> Vec<(UserKey, DeliveryState)> {
    let pending = |user| (user, DeliveryState::Pending);
    match outcome {
        None => recipients.iter().map(pending).collect(),
        Some(Outcome::Delivered { .. }) => Vec::new(),
        Some(Outcome::Mixed {
            delivered,
            suppressed,
            expired,
            dead,
            details,
        }) => {
            let settled: std::collections::HashSet<_> = [&delivered, &suppressed, &expired]
                .into_iter()
                .flatten()
                .collect();
            let dead: std::collections::HashSet<_> = dead.iter().collect();
            recipients
                .iter()
                .filter(|user| !settled.contains(user) && details.waiting(*user).is_empty())
                .map(|user| {
                    if dead.contains(&user) {
                        (user, DeliveryState::Dead)
                    } else {
                        pending(user)
                    }
                })
                .collect()
        }
    }
}
