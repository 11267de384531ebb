//! Repairs findings: publishes messages with idempotent effects, and rebuilds timelines.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures::{StreamExt as _, pin_mut};
use herald_mesh::{
    RawMessage, Redrive, Subject,
    consumers::{self, ConsumerKind},
    streams,
};
use herald_model::{Channel, Post, PostId, Recipients, UserKey, time::Timestamp};
use herald_proto::{
    EVENT_CHUNKS_MAX,
    mesh_v1::{self, DeliveriesSettled, PostCreated, PushChunk, SettledChunk, TimelineChunk},
    v1,
};
use herald_store::{ChunkState, PostPlan};
use prost::Message as _;

use crate::{Auditor, Repaired, in_flight::ChunkKey, plan::count_states};

/// The dead-letter id of a redrive without a dead letter.
const NO_DEAD_LETTER: u64 = 0;

/// Timelines rebuilt or read at once.
const TIMELINES: usize = 256;

/// Repairs findings. Each chunk is redriven once, and each timeline rebuilt once, in an audit, even if several findings
/// are about it.
pub(crate) struct Repair<'a> {
    auditor: &'a Auditor,
    rebuilt: HashSet<UserKey>,
    sent: HashMap<ChunkKey, Repaired>,
}

type SendResult = std::result::Result<(), String>;

impl<'a> Repair<'a> {
    pub(crate) fn new(auditor: &'a Auditor) -> Self {
        Self {
            auditor,
            rebuilt: HashSet::new(),
            sent: HashMap::new(),
        }
    }

    /// Redrives the post to the archive consumer.
    pub(crate) async fn archive(&self, post: PostId) -> Repaired {
        into_repaired(self.redrive_post(post, ConsumerKind::Archive).await)
    }

    /// Redrives the post to the fan-out, which expands it from its first follower. Slices that are already planned
    /// stay.
    pub(crate) async fn expand(&self, post: PostId) -> Repaired {
        into_repaired(self.redrive_post(post, ConsumerKind::Fanout).await)
    }

    /// Redrives a chunk; recipients that have it already get no second delivery.
    pub(crate) async fn resend(&mut self, key: ChunkKey, chunk: &ChunkState) -> Repaired {
        if let Some(sent) = self.sent.get(&key) {
            return sent.clone();
        }
        let sent = into_repaired(self.redrive_chunk(key, chunk).await);
        self.sent.insert(key, sent.clone());
        sent
    }

    /// Rebuilds the timelines of users. Returns those who have the post now, or get it when they read their timeline.
    pub(crate) async fn rebuild(
        &mut self,
        post: PostId,
        users: &[UserKey],
    ) -> std::result::Result<HashSet<UserKey>, String> {
        let timelines = &self.auditor.timelines;
        let new: Vec<UserKey> = users
            .iter()
            .copied()
            .filter(|user| !self.rebuilt.contains(user))
            .collect();
        for page in new.chunks(TIMELINES) {
            let rebuilt = timelines.rebuild(page).await;
            rebuilt.map_err(|error| format!("the timeline can't be rebuilt: {error}"))?;
            self.rebuilt.extend(page);
        }
        let mut repaired = HashSet::new();
        for page in users.chunks(TIMELINES) {
            let read = timelines.read(page).await;
            let read = read.map_err(|error| format!("the rebuilt timeline can't be read: {error}"))?;
            let read = page.iter().zip(read);
            repaired.extend(
                read.filter(|(_, timeline)| {
                    !timeline.complete || timeline.posts.binary_search(&post).is_ok()
                })
                .map(|(user, _)| *user),
            );
        }
        Ok(repaired)
    }

    /// Publishes the missing dead letter of a chunk.
    pub(crate) async fn write_dead_letter(&self, key: ChunkKey, chunk: &ChunkState) -> Repaired {
        into_repaired(self.publish_dead_letter(key, chunk).await)
    }

    /// Redrives the post to analytics, which counts it.
    pub(crate) async fn count_post(&self, post: PostId) -> Repaired {
        into_repaired(self.redrive_post(post, ConsumerKind::AnalyticsPosts).await)
    }

    /// Publishes the settlement events of all chunks of a post again.
    pub(crate) async fn recount(&self, post: PostId, plan: &PostPlan) -> Repaired {
        into_repaired(self.publish_events(post, plan).await)
    }

    /// Publishes an advisory again.
    pub(crate) async fn republish_advisory(&self, advisory: &RawMessage) -> Repaired {
        let sent = self.auditor.mesh.republish(advisory).await;
        into_repaired(sent.map(|_| ()).map_err(|error| error.to_string()))
    }

    async fn redrive_post(&self, post: PostId, kind: ConsumerKind) -> SendResult {
        let message = self.auditor.mesh.message(streams::POSTS, post.0).await;
        let Some(message) = message.map_err(|error| error.to_string())? else {
            let archived = self.read_archived_post(post).await;
            let archived = archived.map_err(|reason| format!("POSTS no longer has the post; {reason}"))?;
            if archived.is_erased() {
                return Err("the text of the post was erased".into());
            }
            let message = herald_posts::created_message(&archived).encode_to_vec();
            let subject = Subject::PostCreated(archived.lane);
            return self
                .redrive(kind, subject, post, archived.accepted_at, message.into())
                .await;
        };
        let subject = Subject::parse(&message.subject)
            .ok_or("the message in POSTS with the post's id has an unknown subject")?;
        message
            .decode::<PostCreated>()
            .map_err(|error| error.to_string())?;
        self.redrive(kind, subject, post, message.published_at, message.payload)
            .await
    }

    async fn redrive_chunk(&self, (post, channel, _): ChunkKey, state: &ChunkState) -> SendResult {
        let chunk_message =
            ChunkMessage::new(&self.read_archived_post(post).await?, channel, &state.recipients);
        self.redrive(
            chunk_message.kind,
            chunk_message.subject,
            post,
            Timestamp::now(),
            chunk_message.payload,
        )
        .await
    }

    async fn redrive(
        &self,
        kind: ConsumerKind,
        subject: Subject,
        post: PostId,
        published_at: Timestamp,
        payload: Bytes,
    ) -> SendResult {
        let redrive = Redrive {
            kind,
            dead_letter: NO_DEAD_LETTER,
            round: 0,
            subject,
            sequence: post.0,
            published_at,
            payload,
            trace_parent: None,
            trace_state: None,
            id: format!("audit/{post}/{}", uuid::Uuid::new_v4()),
        };
        let sent = self.auditor.mesh.redrive(&redrive).await;
        sent.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn publish_dead_letter(&self, (post, channel, chunk): ChunkKey, state: &ChunkState) -> SendResult {
        let archived = self.read_archived_post(post).await?;
        let chunk_message = ChunkMessage::new(&archived, channel, &state.recipients);
        let Some(message) = self.find_message(&chunk_message).await? else {
            // Its consumer gives a chunk with dead recipients up again, which makes the dead letter. A timeline takes
            // the post, which changes nothing for those who have it.
            return self.redrive_chunk((post, channel, chunk), state).await;
        };
        let (stream, consumer) = (chunk_message.stream, chunk_message.consumer);
        let dead_letter = mesh_v1::DlqEntry {
            stream: stream.into(),
            consumer: consumer.into(),
            kind: chunk_message.kind.as_str().into(),
            sequence: message.sequence,
            original_sequence: message.sequence,
            subject: chunk_message.subject.as_str().into(),
            message_type: chunk_message.subject.message_type().into(),
            message_id: chunk_message.id,
            payload: chunk_message.payload,
            payload_state: v1::DeadLetterPayload::Kept.into(),
            cause: v1::DeadLetterCause::Audit.into(),
            reason: "dead in the ledger, and no dead letter explained it".into(),
            published_at_us: message.published_at.0,
            failed_at_us: Timestamp::now().0,
            post_id: post.0,
            author_key: archived.author.0,
            channel: v1::Channel::from(channel).into(),
            chunk_id: chunk.0,
            recipient_count: state.recipients.len(),
            accepted_at_us: archived.accepted_at.0,
            lane: v1::Lane::from(archived.lane).into(),
            ..mesh_v1::DlqEntry::default()
        };
        let id = format!("{stream}/{consumer}/{}", message.sequence);
        let mesh = &self.auditor.mesh;
        let published = mesh
            .publish_dead_letter(stream, consumer, &id, &dead_letter)
            .await;
        published.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Finds the original message of a chunk in its stream.
    async fn find_message(
        &self,
        chunk_message: &ChunkMessage,
    ) -> std::result::Result<Option<RawMessage>, String> {
        let (mesh, stream) = (&self.auditor.mesh, chunk_message.stream);
        let messages = mesh.scan(stream, Some(chunk_message.subject.as_str()), 1, u64::MAX);
        pin_mut!(messages);
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| error.to_string())?;
            if message.id() == Some(&chunk_message.id) {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    async fn publish_events(&self, post: PostId, plan: &PostPlan) -> SendResult {
        let archived = self.read_archived_post(post).await?;
        for channel in Channel::ALL {
            let channel_chunks = plan.chunks.iter().filter(|chunk| chunk.channel == channel);
            let settled: Vec<SettledChunk> = channel_chunks
                .filter_map(|chunk| {
                    let recorded = chunk.recorded.as_ref()?;
                    let sums = count_states(chunk);
                    Some(SettledChunk {
                        post_id: post.0,
                        author_key: archived.author.0,
                        channel: v1::Channel::from(channel).into(),
                        chunk_id: chunk.chunk.0,
                        delivered_count: sums.delivered as u32,
                        suppressed_count: sums.suppressed as u32,
                        expired_count: sums.expired as u32,
                        dead_count: sums.dead as u32,
                        accepted_at_us: archived.accepted_at.0,
                        settled_at_us: Timestamp::now().0,
                        revision: recorded.revision,
                    })
                })
                .collect();
            for chunks in settled.chunks(EVENT_CHUNKS_MAX) {
                let event = DeliveriesSettled {
                    chunks: chunks.to_vec(),
                };
                self.auditor
                    .mesh
                    .publish(Subject::Settled(channel), None, &event)
                    .await
                    .map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    async fn read_archived_post(&self, post: PostId) -> std::result::Result<Post, String> {
        let posts = self.auditor.posts.get(&[post]).await;
        let found = posts.map_err(|error| error.to_string())?.pop().flatten();
        found.ok_or_else(|| "the post is not in the archive: repair the archive first".to_owned())
    }
}

/// The message of a chunk as fan-out publishes it, and its consumer.
struct ChunkMessage {
    kind: ConsumerKind,
    stream: &'static str,
    consumer: &'static str,
    subject: Subject,
    id: String,
    payload: Bytes,
}

impl ChunkMessage {
    fn new(post: &Post, channel: Channel, recipients: &Recipients) -> Self {
        match channel {
            Channel::Timeline => {
                let chunk = TimelineChunk::new(post.id, post.author, post.accepted_at, recipients);
                Self {
                    kind: ConsumerKind::Timeline,
                    stream: streams::TIMELINE,
                    consumer: consumers::timeline(post.lane),
                    subject: Subject::TimelineDeliver(post.lane),
                    id: chunk.message_id(),
                    payload: chunk.encode_to_vec().into(),
                }
            }
            Channel::Push => {
                let expires_at = post.accepted_at.plus(post.push_ttl);
                let chunk = PushChunk::new(post.id, post.author, post.accepted_at, expires_at, recipients);
                Self {
                    kind: ConsumerKind::Push,
                    stream: streams::PUSH,
                    consumer: consumers::push(post.lane),
                    subject: Subject::PushDeliver(post.lane),
                    id: chunk.message_id(),
                    payload: chunk.encode_to_vec().into(),
                }
            }
        }
    }
}

fn into_repaired(result: SendResult) -> Repaired {
    match result {
        Ok(()) => Repaired::Sent,
        Err(reason) => Repaired::Failed(reason),
    }
}
