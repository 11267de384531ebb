//! Sending again what is owed. Each thing that is sent can come twice without another effect.

use std::collections::HashMap;

use bytes::Bytes;
use futures::{StreamExt as _, pin_mut};
use herald_mesh::{
    RawMessage, Redrive, Subject,
    consumers::{self, ConsumerKind},
    streams,
};
use herald_model::{Channel, Post, PostId, Recipients, time::Timestamp};
use herald_proto::{
    EVENT_CHUNKS_MAX,
    mesh_v1::{self, DeliveriesSettled, PostCreated, PushChunk, SettledChunk, TimelineChunk},
    v1,
};
use herald_store::{ChunkState, PostPlan};
use prost::Message as _;

use crate::{Auditor, Repaired, carried::ChunkKey, plan::sums};

/// The dead letter's number of a message that no dead letter is about.
const BY_AUDITOR: u64 = 0;

/// Repairs findings. The same chunk is sent again once an audit, however many findings are about it.
pub(crate) struct Repair<'a> {
    auditor: &'a Auditor,
    sent: HashMap<ChunkKey, Repaired>,
}

type Outcome = std::result::Result<(), String>;

impl<'a> Repair<'a> {
    pub(crate) fn new(auditor: &'a Auditor) -> Self {
        Self {
            auditor,
            sent: HashMap::new(),
        }
    }

    /// Lets the post be archived again.
    pub(crate) async fn archive(&self, post: PostId) -> Repaired {
        repaired(self.redrive_post(post, ConsumerKind::Archive).await)
    }

    /// Lets the post be expanded again, from its first follower: what is planned already is planned the same.
    pub(crate) async fn expand(&self, post: PostId) -> Repaired {
        repaired(self.redrive_post(post, ConsumerKind::Fanout).await)
    }

    /// Lets a chunk be delivered again: to those who don't have it.
    pub(crate) async fn resend(&mut self, key: ChunkKey, chunk: &ChunkState) -> Repaired {
        if let Some(sent) = self.sent.get(&key) {
            return sent.clone();
        }
        let sent = repaired(self.redrive_chunk(key, chunk).await);
        self.sent.insert(key, sent.clone());
        sent
    }

    /// Makes the dead letter that is missing.
    pub(crate) async fn write_dead_letter(&self, key: ChunkKey, chunk: &ChunkState) -> Repaired {
        repaired(self.publish_dead_letter(key, chunk).await)
    }

    /// Tells analytics of every chunk of a post again.
    pub(crate) async fn recount(&self, post: PostId, plan: &PostPlan) -> Repaired {
        repaired(self.publish_events(post, plan).await)
    }

    /// Lets an advisory come again.
    pub(crate) async fn advise_again(&self, advisory: &RawMessage) -> Repaired {
        let sent = self.auditor.mesh.republish(advisory).await;
        repaired(sent.map(|_| ()).map_err(|error| error.to_string()))
    }

    async fn redrive_post(&self, post: PostId, kind: ConsumerKind) -> Outcome {
        let message = self.auditor.mesh.message(streams::POSTS, post.0).await;
        let message = message
            .map_err(|error| error.to_string())?
            .ok_or("POSTS doesn't have the post any more")?;
        let subject = Subject::parse(&message.subject).ok_or("POSTS has something else under its id")?;
        message
            .decode::<PostCreated>()
            .map_err(|error| error.to_string())?;
        self.redrive(kind, subject, post, message.published_at, message.payload)
            .await
    }

    async fn redrive_chunk(&self, (post, channel, _): ChunkKey, state: &ChunkState) -> Outcome {
        let carrier = Carrier::of(&self.post(post).await?, channel, &state.recipients);
        self.redrive(
            carrier.kind,
            carrier.subject,
            post,
            Timestamp::now(),
            carrier.payload,
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
    ) -> Outcome {
        let redrive = Redrive {
            kind,
            dead_letter: BY_AUDITOR,
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

    async fn publish_dead_letter(&self, (post, channel, chunk): ChunkKey, state: &ChunkState) -> Outcome {
        let facts = self.post(post).await?;
        let carrier = Carrier::of(&facts, channel, &state.recipients);
        let message = self.find(&carrier).await?;
        let (stream, consumer) = (carrier.stream, carrier.consumer);
        let dead_letter = mesh_v1::DlqEntry {
            stream: stream.into(),
            consumer: consumer.into(),
            kind: carrier.kind.as_str().into(),
            sequence: message.sequence,
            original_sequence: message.sequence,
            subject: carrier.subject.as_str().into(),
            message_type: carrier.subject.message_type().into(),
            message_id: carrier.id,
            payload: carrier.payload,
            payload_state: v1::DeadLetterPayload::Kept.into(),
            cause: v1::DeadLetterCause::Audit.into(),
            reason: "dead in the ledger, and no dead letter said why".into(),
            published_at_us: message.published_at.0,
            failed_at_us: Timestamp::now().0,
            post_id: post.0,
            author_key: facts.author.0,
            channel: v1::Channel::from(channel).into(),
            chunk_id: chunk.0,
            recipient_count: state.recipients.len(),
            accepted_at_us: facts.accepted_at.0,
            lane: v1::Lane::from(facts.lane).into(),
            ..mesh_v1::DlqEntry::default()
        };
        let id = format!("{stream}/{consumer}/{}", message.sequence);
        let mesh = &self.auditor.mesh;
        let published = mesh
            .publish_dead_letter(stream, consumer, &id, &dead_letter)
            .await;
        published.map(|_| ()).map_err(|error| error.to_string())
    }

    /// The message that had carried a chunk: what a dead letter is about.
    async fn find(&self, carrier: &Carrier) -> std::result::Result<RawMessage, String> {
        let (mesh, stream) = (&self.auditor.mesh, carrier.stream);
        let messages = mesh.scan(stream, Some(carrier.subject.as_str()), 1, u64::MAX);
        pin_mut!(messages);
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| error.to_string())?;
            if message.id() == Some(&carrier.id) {
                return Ok(message);
            }
        }
        Err(format!("{stream} doesn't have its message any more"))
    }

    async fn publish_events(&self, post: PostId, plan: &PostPlan) -> Outcome {
        let facts = self.post(post).await?;
        for channel in Channel::ALL {
            let of_channel = plan.chunks.iter().filter(|chunk| chunk.channel == channel);
            let settled: Vec<SettledChunk> = of_channel
                .filter_map(|chunk| {
                    let recorded = chunk.recorded.as_ref()?;
                    let sums = sums(chunk);
                    Some(SettledChunk {
                        post_id: post.0,
                        author_key: facts.author.0,
                        channel: v1::Channel::from(channel).into(),
                        chunk_id: chunk.chunk.0,
                        delivered_count: sums.delivered as u32,
                        suppressed_count: sums.suppressed as u32,
                        expired_count: sums.expired as u32,
                        dead_count: sums.dead as u32,
                        accepted_at_us: facts.accepted_at.0,
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

    async fn post(&self, post: PostId) -> std::result::Result<Post, String> {
        let posts = self.auditor.posts.get(&[post]).await;
        let found = posts.map_err(|error| error.to_string())?.pop().flatten();
        found.ok_or_else(|| "the post is not in the archive: repair that first".to_owned())
    }
}

/// A chunk's message, as fan-out makes it, and who gets it.
struct Carrier {
    kind: ConsumerKind,
    stream: &'static str,
    consumer: &'static str,
    subject: Subject,
    id: String,
    payload: Bytes,
}

impl Carrier {
    fn of(post: &Post, channel: Channel, recipients: &Recipients) -> Self {
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

fn repaired(outcome: Outcome) -> Repaired {
    match outcome {
        Ok(()) => Repaired::Sent,
        Err(why) => Repaired::Failed(why),
    }
}
