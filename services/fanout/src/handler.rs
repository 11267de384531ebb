//! Expands one message: a post or a slice.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::try_join_all;
use herald_mesh::{Delivery, Disposition, Handler, Mesh, Subject};
use herald_model::{Channel, FollowVersion, PostId, UserId, UserKey, time::Timestamp};
use herald_posts::{NO_KEY, author_key};
use herald_proto::mesh_v1::{FanoutSlice, PostCreated, PushChunk, TimelineChunk};
use herald_runtime::wait::Waiting;
use herald_store::{ChunkPlan, Ledger, SlicePlan, Users};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Metrics,
    adapters::{Followers, SliceFollowers},
    domain::{self, Slice},
    error::ExpandError,
};

/// Expands posts and slices.
pub(crate) struct Fanout {
    pub(crate) mesh: Mesh,
    pub(crate) users: Arc<dyn Users>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) followers: Followers,
    pub(crate) waiting: Waiting,
    pub(crate) metrics: Metrics,
    pub(crate) config: Config,
    /// Cancelled when the service stops.
    pub(crate) stop: CancellationToken,
}

#[async_trait]
impl Handler for Fanout {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let slice = match decode_slice(delivery) {
            Ok(slice) => slice,
            Err(disposition) => return disposition,
        };
        // While the graph service or the store is unavailable, or a stream or the disk is full, the message waits here.
        let done = self.waiting.until_done(&self.stop, ExpandError::is_wait, || {
            self.resolve_and_expand(&slice)
        });
        match done.await.unwrap_or(Err(ExpandError::Stopped)) {
            Ok(()) => Disposition::Ack,
            Err(error) => error.into(),
        }
    }
}

/// A slice as the message has it.
struct DecodedSlice {
    slice: Slice,
    /// The author of a message that lacks the author's key.
    author_id: Option<UserId>,
}

impl From<Slice> for DecodedSlice {
    fn from(slice: Slice) -> Self {
        Self {
            slice,
            author_id: None,
        }
    }
}

/// Decodes a message. The error is the disposition of a message that can't be decoded.
fn decode_slice(delivery: &Delivery) -> Result<DecodedSlice, Disposition> {
    match delivery.subject {
        Subject::PostCreated(lane) => {
            let post: PostCreated = delivery.decode()?;
            let author_id = if UserKey(post.author_key) == NO_KEY {
                let id = UserId::from_stored(post.author_id);
                Some(id.map_err(|error| Disposition::term(format_args!("author_id {error}")))?)
            } else {
                None
            };
            let slice = Slice {
                post: PostId(delivery.sequence),
                author: UserKey(post.author_key),
                version: None,
                after: None,
                index: 0,
                lane,
                accepted_at: Timestamp(post.accepted_at_us),
                push_ttl_seconds: post.push_ttl_seconds,
            };
            Ok(DecodedSlice { slice, author_id })
        }
        Subject::Slice(lane) => {
            let slice: FanoutSlice = delivery.decode()?;
            Ok(Slice {
                post: PostId(slice.post_id),
                author: UserKey(slice.author_key),
                version: Some(FollowVersion(slice.follow_version)),
                after: Some(UserKey(slice.after_key)),
                index: slice.slice_index,
                lane,
                accepted_at: Timestamp(slice.accepted_at_us),
                push_ttl_seconds: slice.push_ttl_seconds,
            }
            .into())
        }
        other => Err(Disposition::term(format_args!(
            "subject {other} is not handled by fan-out"
        ))),
    }
}

impl Fanout {
    /// Looks up the author of a message that lacks the author's key, then expands the slice.
    async fn resolve_and_expand(&self, decoded: &DecodedSlice) -> Result<(), ExpandError> {
        let mut slice = decoded.slice;
        if let Some(id) = &decoded.author_id {
            let author = author_key(&*self.users, slice.author, id).await;
            slice.author = author.map_err(ExpandError::Author)?;
        }
        self.expand(&slice).await
    }

    /// Writes the plan, publishes its chunks, then the next slice. The ledger keeps the plan of the first attempt and
    /// returns it to every retry, so a retry publishes the same messages; the broker deduplicates them by ids made from
    /// their content.
    async fn expand(&self, slice: &Slice) -> Result<(), ExpandError> {
        let followers = self.read_followers(slice).await?;
        let chunks: Vec<ChunkPlan> = followers
            .pages
            .into_iter()
            .flat_map(|page| {
                domain::split_into_chunks(
                    page.followers,
                    &page.notify,
                    self.config.push_chunk_recipients_max,
                )
            })
            .collect();
        let plan = SlicePlan {
            post: slice.post,
            author: slice.author,
            slice: slice.index,
            version: followers.version,
            chunks,
            next_after: followers.more_after,
        };
        let plan = self.ledger.plan(plan).await?;
        herald_failpoints::point!("fanout.planned");
        // One slice bounds the number of chunks; the mesh bounds the publishes in flight.
        try_join_all(plan.chunks.iter().map(|chunk| self.publish_chunk(slice, chunk))).await?;
        if let Some(last) = plan.next_after {
            self.publish_slice(&slice.next(plan.version, last)).await?;
        }
        self.count_planned(&plan);
        Ok(())
    }

    /// Reads the followers of a slice.
    async fn read_followers(&self, slice: &Slice) -> Result<SliceFollowers, ExpandError> {
        let recipients_max = self.config.slice_recipients_max;
        let followers = self.followers.read_slice(slice, recipients_max).await?;
        if herald_failpoints::negative_control!("fanout.stale-followers")
            && slice.version.is_none()
            && followers.version.0 > 1
        {
            let version = Some(FollowVersion(followers.version.0 - 1));
            let stale = Slice { version, ..*slice };
            return self.followers.read_slice(&stale, recipients_max).await;
        }
        Ok(followers)
    }

    async fn publish_chunk(&self, slice: &Slice, chunk: &ChunkPlan) -> Result<(), ExpandError> {
        if herald_failpoints::negative_control!("fanout.drop-chunk") {
            return Ok(());
        }
        match chunk.channel {
            Channel::Timeline => {
                let body = TimelineChunk::new(slice.post, slice.author, slice.accepted_at, &chunk.recipients);
                let id = body.message_id();
                self.mesh
                    .publish(Subject::TimelineDeliver(slice.lane), Some(&id), &body)
                    .await?;
            }
            Channel::Push => {
                let expires_at = slice.push_expires_at();
                let body = PushChunk::new(
                    slice.post,
                    slice.author,
                    slice.accepted_at,
                    expires_at,
                    &chunk.recipients,
                );
                let id = body.message_id();
                self.mesh
                    .publish(Subject::PushDeliver(slice.lane), Some(&id), &body)
                    .await?;
            }
        }
        herald_failpoints::point!("fanout.chunk-published");
        Ok(())
    }

    /// Publishes the next slice. It queues behind other posts of the lane, so that an author with many followers does
    /// not delay other authors.
    async fn publish_slice(&self, next: &Slice) -> Result<(), ExpandError> {
        let body = FanoutSlice {
            post_id: next.post.0,
            author_key: next.author.0,
            follow_version: next.version.map_or(0, |version| version.0),
            after_key: next.after.map_or(0, |key| key.0),
            slice_index: next.index,
            accepted_at_us: next.accepted_at.0,
            push_ttl_seconds: next.push_ttl_seconds,
        };
        let id = format!("{}/slice/{}", next.post, next.index);
        self.mesh
            .publish(Subject::Slice(next.lane), Some(&id), &body)
            .await?;
        Ok(())
    }

    fn count_planned(&self, plan: &SlicePlan) {
        self.metrics.slices.inc();
        for chunk in &plan.chunks {
            let planned = match chunk.channel {
                Channel::Timeline => &self.metrics.timeline_planned,
                Channel::Push => &self.metrics.push_planned,
            };
            planned.inc_by(chunk.recipients.len().into());
        }
    }
}
