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
            // Index 0 is the slice of the message in POSTS, and the index of the next slice must fit.
            if !(1..u32::MAX).contains(&slice.slice_index) {
                return Err(Disposition::term(format_args!(
                    "malformed slice index {}",
                    slice.slice_index
                )));
            }
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
            self.metrics
                .count_planned(chunk.channel, chunk.recipients.len().into());
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_model::Lane;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn posts() -> impl Strategy<Value = PostCreated> {
        (
            herald_fuzz::u32s(),
            ".{0,20}",
            herald_fuzz::micros(),
            herald_fuzz::u32s(),
        )
            .prop_map(
                |(author_key, author_id, accepted_at_us, push_ttl_seconds)| PostCreated {
                    author_key,
                    author_id,
                    accepted_at_us,
                    push_ttl_seconds,
                    text: "text".into(),
                    ..PostCreated::default()
                },
            )
    }

    fn slices() -> impl Strategy<Value = FanoutSlice> {
        let keys = (herald_fuzz::u32s(), herald_fuzz::u32s(), herald_fuzz::u32s());
        (
            keys,
            herald_fuzz::u64s(),
            herald_fuzz::micros(),
            herald_fuzz::u32s(),
        )
            .prop_map(
                |((author_key, after_key, slice_index), post_id, accepted_at_us, push_ttl_seconds)| {
                    FanoutSlice {
                        post_id,
                        author_key,
                        follow_version: post_id,
                        after_key,
                        slice_index,
                        accepted_at_us,
                        push_ttl_seconds,
                    }
                },
            )
    }

    /// What fan-out computes of a decoded message before it asks anyone.
    fn check(subject: Subject, payload: Vec<u8>) -> Result<(), TestCaseError> {
        match decode_slice(&Delivery::without_consumer(subject, 7, payload)) {
            Err(disposition) => {
                let is_terminated = matches!(disposition, Disposition::Term { .. });
                prop_assert!(is_terminated);
            }
            Ok(DecodedSlice { slice, author_id }) => {
                prop_assert!(slice.push_expires_at() >= slice.accepted_at);
                let next = slice.next(FollowVersion(1), UserKey(1));
                prop_assert!(next.index > slice.index);
                prop_assert!(author_id.is_none() || slice.author == NO_KEY);
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn bytes_near_a_post_are_its_first_slice_or_terminated(
            payload in herald_fuzz::near(posts().prop_map(|post| post.encode_to_vec())),
        ) {
            check(Subject::PostCreated(Lane::Low), payload)?;
        }

        #[test]
        fn bytes_near_a_slice_are_a_slice_or_terminated(
            payload in herald_fuzz::near(slices().prop_map(|slice| slice.encode_to_vec())),
        ) {
            check(Subject::Slice(Lane::High), payload)?;
        }
    }
}
