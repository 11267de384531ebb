//! Dead letters and operations, with what must be asked of others: authors' ids, payloads, who is still owed.

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
use crate::{origin, wire};

/// Owed recipients that are shown with a dead letter.
const OWED_SHOWN: usize = 100;

const LIST_OWED: &str = "ListOwedRecipients";

/// Where a page of a dead letter's recipients begins.
pub(super) fn owed_after(dead_letter: u64, token: &str) -> Result<Option<UserKey>, Status> {
    let identity = paging::identity([&dead_letter.to_be_bytes()[..]]);
    let cursor = PageToken::decode_u64(LIST_OWED, identity, token)?;
    cursor
        .map(|key| {
            u32::try_from(key)
                .map(UserKey)
                .map_err(|_| status::invalid(&[("page_token", "is not a page token")]))
        })
        .transpose()
}

impl Api {
    /// One dead letter.
    pub(super) async fn dead_letter(&self, id: u64) -> Result<DeadLetter, Status> {
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

    /// The dead letter's message in DLQ; `None` when it is no longer there.
    pub(super) async fn body(&self, id: DeadLetterId) -> Result<Option<DlqEntry>, Status> {
        let message = self.mesh.message(streams::DLQ, id.0).await;
        let message = message.map_err(|e| status::from_mesh(&e))?;
        Ok(message.and_then(|message| message.decode().ok()))
    }

    /// Dead letters, as a list shows them.
    pub(super) async fn show_all(
        &self,
        dead_letters: Vec<DeadLetter>,
    ) -> Result<Vec<v1::DeadLetter>, Status> {
        let mut keys: Vec<_> = dead_letters
            .iter()
            .filter_map(|dead_letter| dead_letter.author)
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let ids = self.ids(&keys).await?;
        let authors: HashMap<UserKey, String> = keys.into_iter().zip(ids).collect();
        let mut shown = Vec::with_capacity(dead_letters.len());
        for dead_letter in dead_letters {
            let author = dead_letter
                .author
                .and_then(|author| authors.get(&author))
                .cloned();
            let owed = self.owed_count(&dead_letter).await?;
            shown.push(wire::dead_letter(dead_letter, author.unwrap_or_default(), owed));
        }
        Ok(shown)
    }

    /// A dead letter with all that is known of it.
    pub(super) async fn show(&self, dead_letter: DeadLetter) -> Result<v1::GetDeadLetterResponse, Status> {
        let body = self.body(dead_letter.id).await?;
        let owed = self.owed(&dead_letter, body.as_ref()).await?;
        let (recipients, next_owed_page_token) =
            self.owed_page(&dead_letter, &owed, None, OWED_SHOWN).await?;
        let mut operations = Vec::with_capacity(dead_letter.operations.len());
        for operation in dead_letter.operations.iter().rev() {
            let operation = self.dead_letters.operation(*operation).await;
            operations.extend(operation.map_err(|e| status::from_store(&e))?);
        }
        let operations = self.show_operations(&operations).await?;
        let body = body.unwrap_or_default();
        let shown = self.show_all(vec![dead_letter]).await?;
        Ok(v1::GetDeadLetterResponse {
            dead_letter: shown.into_iter().next(),
            payload_json: self.json(&body).unwrap_or_default(),
            payload: body.payload.into(),
            headers: body
                .headers
                .into_iter()
                .map(|header| v1::DeadLetterHeader {
                    name: header.name,
                    value: header.value,
                })
                .collect(),
            owed_user_ids: recipients.into_iter().map(|one| one.user_id).collect(),
            next_owed_page_token,
            operations,
        })
    }

    /// Acts, as callers see them.
    pub(super) async fn show_operations(
        &self,
        operations: &[Operation],
    ) -> Result<Vec<v1::DeadLetterOperation>, Status> {
        let now = Timestamp::now();
        let mut shown = Vec::with_capacity(operations.len());
        for operation in operations {
            let target = match (operation.what.kind, operation.what.target) {
                (OperationKind::Cancel, Some(target)) => {
                    let target = self.dead_letters.operation(target).await;
                    target.map_err(|e| status::from_store(&e))?
                }
                _ => None,
            };
            shown.push(wire::operation(operation, target.as_ref(), now));
        }
        Ok(shown)
    }

    /// What a message carries as JSON, if it can be read.
    fn json(&self, body: &DlqEntry) -> Option<String> {
        let known = herald_mesh::Subject::parse(&body.subject)?;
        let message = self.descriptors.get_message_by_name(known.message_type())?;
        if body.payload_state() != v1::DeadLetterPayload::Kept {
            return None;
        }
        let message = DynamicMessage::decode(message, body.payload.clone()).ok()?;
        serde_json::to_string(&message).ok()
    }

    /// How many recipients a dead letter still owes, by the ledger.
    async fn owed_count(&self, dead_letter: &DeadLetter) -> Result<u32, Status> {
        let (Some(post), Some(channel), Some(chunk)) =
            (dead_letter.post, dead_letter.channel, dead_letter.chunk)
        else {
            return Ok(0);
        };
        let done = match self.outcome(post, channel, chunk).await? {
            None => 0,
            Some(Outcome::Delivered { count }) => count,
            Some(Outcome::Mixed {
                delivered,
                suppressed,
                expired,
                ..
            }) => delivered.len() + suppressed.len() + expired.len(),
        };
        Ok(dead_letter.recipients.saturating_sub(done))
    }

    /// Whom a dead letter still owes, by the ledger.
    pub(super) async fn owed(
        &self,
        dead_letter: &DeadLetter,
        body: Option<&DlqEntry>,
    ) -> Result<Vec<(UserKey, DeliveryState)>, Status> {
        let (Some(post), Some(channel), Some(chunk)) =
            (dead_letter.post, dead_letter.channel, dead_letter.chunk)
        else {
            return Ok(Vec::new());
        };
        let Some(recipients) = body.and_then(origin::recipients) else {
            return Ok(Vec::new());
        };
        Ok(owed(&recipients, self.outcome(post, channel, chunk).await?))
    }

    /// What the ledger has of a chunk. A row that can't be read is as good as none: the dead letter about it, and others on its
    /// page, must be seen all the same.
    async fn outcome(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
    ) -> Result<Option<Outcome>, Status> {
        match self.ledger.outcome(post, channel, chunk).await {
            Ok(recorded) => Ok(recorded.map(|recorded| recorded.outcome)),
            Err(error) if !error.is_transient() => {
                tracing::warn!(post_id = post.0, %channel, chunk_id = %chunk, %error, "outcome of a chunk can't be read");
                Ok(None)
            }
            Err(error) => Err(status::from_store(&error)),
        }
    }

    /// One page of those whom a dead letter owes, and the token of the next.
    pub(super) async fn owed_page(
        &self,
        dead_letter: &DeadLetter,
        owed: &[(UserKey, DeliveryState)],
        after: Option<UserKey>,
        page_size: usize,
    ) -> Result<(Vec<v1::OwedRecipient>, String), Status> {
        let begin = owed.partition_point(|(user, _)| Some(*user) <= after);
        let rest = &owed[begin..];
        let page = &rest[..page_size.min(rest.len())];
        let keys: Vec<_> = page.iter().map(|(user, _)| *user).collect();
        let ids = self.ids(&keys).await?;
        let recipients = page
            .iter()
            .zip(ids)
            .map(|((_, state), user_id)| v1::OwedRecipient {
                user_id,
                state: v1::DeliveryState::from(*state).into(),
            });
        let identity = paging::identity([&dead_letter.id.0.to_be_bytes()[..]]);
        let token = match page.last() {
            Some((last, _)) if rest.len() > page.len() => {
                PageToken::encode_u64(LIST_OWED, identity, last.0.into())
            }
            _ => String::new(),
        };
        Ok((recipients.collect(), token))
    }

    async fn ids(&self, keys: &[UserKey]) -> Result<Vec<String>, Status> {
        let ids = self.users.ids(keys).await;
        let ids = ids.map_err(|e| status::from_store(&e))?.into_iter();
        Ok(ids
            .map(|id| id.map(UserId::into_string).unwrap_or_default())
            .collect())
    }
}

/// Those of a chunk who are dead or pending.
fn owed(recipients: &Recipients, outcome: Option<Outcome>) -> Vec<(UserKey, DeliveryState)> {
    let pending = |user| (user, DeliveryState::Pending);
    match outcome {
        None => recipients.iter().map(pending).collect(),
        Some(Outcome::Delivered { .. }) => Vec::new(),
        Some(Outcome::Mixed {
            delivered,
            suppressed,
            expired,
            dead,
            ..
        }) => {
            let settled: std::collections::HashSet<_> = [&delivered, &suppressed, &expired]
                .into_iter()
                .flatten()
                .collect();
            let dead: std::collections::HashSet<_> = dead.iter().collect();
            recipients
                .iter()
                .filter(|user| !settled.contains(user))
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
