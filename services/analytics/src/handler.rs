//! The way in: messages of POSTS and EVENTS.

use async_trait::async_trait;
use herald_mesh::{Delivery, Handler, Settle, Subject};
use herald_model::time::Micros;
use herald_model::{ChunkId, FollowVersion, PostId, UserId, UserKey};
use herald_proto::mesh_v1::{DeliveriesSettled, PostCreated, PostDeleted};
use herald_store::{ChunkRef, Counted, SettledCounts};
use tokio::sync::{mpsc, oneshot};

use crate::batcher::Submission;
use crate::domain::{Change, DeletionRow, DeliveriesRow, Entry, PostRow, Row, hour_of};

/// Hands messages to the batcher and waits for their commit.
pub(crate) struct Messages {
    pub(crate) batcher: mpsc::Sender<Submission>,
}

#[async_trait]
impl Handler for Messages {
    async fn handle(&self, delivery: &Delivery) -> Settle {
        let entry = match read(delivery) {
            Ok(row) => Entry {
                sequence: delivery.sequence,
                row,
            },
            Err(settle) => return settle,
        };
        let (settle, settled) = oneshot::channel();
        if self.batcher.send(Submission { entry, settle }).await.is_err() {
            return Settle::retry("analytics is shutting down");
        }
        settled
            .await
            .unwrap_or_else(|_| Settle::retry("analytics lost the batch"))
    }
}

/// Reads a message, or says how to settle one that can't be read.
pub(crate) fn read(delivery: &Delivery) -> Result<Row, Settle> {
    let row = match delivery.subject {
        Subject::PostCreated(lane) => {
            let post: PostCreated = delivery.decode()?;
            Row::Post(Box::new(PostRow {
                post: PostId(delivery.sequence),
                author: UserKey(post.author_key),
                author_id: UserId::new(post.author_id)
                    .map_err(|error| Settle::term(format_args!("author_id {error}")))?,
                lane,
                text_bytes: count(post.text.len()),
                links: count(post.links.len()),
                media: count(post.media_urls.len()),
                follow_version: FollowVersion(post.follow_version),
                push_ttl_seconds: post.push_ttl_seconds,
                accepted_at: Micros(post.accepted_at_us),
            }))
        }
        Subject::PostDeleted(_) => {
            let deletion: PostDeleted = delivery.decode()?;
            Row::Deletion(DeletionRow {
                post: PostId(deletion.post_id),
                author: UserKey(deletion.author_key),
                deleted_at: Micros(deletion.deleted_at_us),
            })
        }
        Subject::Settled(channel) => {
            let settled: DeliveriesSettled = delivery.decode()?;
            Row::Deliveries(DeliveriesRow {
                author: UserKey(settled.author_key),
                chunk: ChunkRef {
                    post: PostId(settled.post_id),
                    channel,
                    chunk: ChunkId(settled.chunk_id),
                },
                state: Counted {
                    revision: settled.revision,
                    counts: SettledCounts {
                        delivered: settled.delivered_count,
                        suppressed: settled.suppressed_count,
                        expired: settled.expired_count,
                        dead: settled.dead_count,
                    },
                },
                change: Change::default(),
                accepted_at: Micros(settled.accepted_at_us),
                settled_at: Micros(settled.settled_at_us),
            })
        }
        other => return Err(Settle::term(format_args!("nothing to count on {other}"))),
    };
    if hour_of(row.at()).is_none() {
        return Err(Settle::term(format_args!(
            "{} us since 1970 is no moment",
            row.at().0
        )));
    }
    Ok(row)
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
