//! The way in: messages of POSTS and EVENTS.

use async_trait::async_trait;
use herald_mesh::{Delivery, Disposition, Handler, Subject};
use herald_model::time::Timestamp;
use herald_model::{Channel, ChunkId, FollowVersion, PostId, UserId, UserKey};
use herald_proto::EVENT_CHUNKS_MAX;
use herald_proto::mesh_v1::{DeliveriesSettled, PostCreated, PostDeleted, SettledChunk};
use herald_store::{ChunkRef, Counted, SettledCounts};
use tokio::sync::{mpsc, oneshot};

use crate::batcher::Submission;
use crate::domain::{Change, DeletionRow, DeliveriesRow, PostRow, Row, hour_of};

/// Hands messages to the batcher and waits for their commit.
pub(crate) struct Messages {
    pub(crate) batcher: mpsc::Sender<Submission>,
}

#[async_trait]
impl Handler for Messages {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let rows = match read(delivery) {
            Ok(rows) => rows,
            Err(settle) => return settle,
        };
        let (settle, settled) = oneshot::channel();
        let submission = Submission {
            sequence: delivery.sequence,
            rows,
            settle,
        };
        if self.batcher.send(submission).await.is_err() {
            return Disposition::retry("analytics is shutting down");
        }
        settled
            .await
            .unwrap_or_else(|_| Disposition::retry("analytics lost the batch"))
    }
}

/// Reads a message's rows, at least one, or says how to settle one that can't be read.
pub(crate) fn read(delivery: &Delivery) -> Result<Vec<Row>, Disposition> {
    let rows = match delivery.subject {
        Subject::PostCreated(lane) => {
            let post: PostCreated = delivery.decode()?;
            vec![Row::Post(Box::new(PostRow {
                post: PostId(delivery.sequence),
                author: UserKey(post.author_key),
                author_id: UserId::new(post.author_id)
                    .map_err(|error| Disposition::term(format_args!("author_id {error}")))?,
                lane,
                text_bytes: count(post.text.len()),
                links: count(post.links.len()),
                media: count(post.media_urls.len()),
                follow_version: FollowVersion(post.follow_version),
                push_ttl_seconds: post.push_ttl_seconds,
                accepted_at: Timestamp(post.accepted_at_us),
            }))]
        }
        Subject::PostDeleted(_) => {
            let deletion: PostDeleted = delivery.decode()?;
            vec![Row::Deletion(DeletionRow {
                post: PostId(deletion.post_id),
                author: UserKey(deletion.author_key),
                deleted_at: Timestamp(deletion.deleted_at_us),
            })]
        }
        Subject::Settled(channel) => {
            let settled: DeliveriesSettled = delivery.decode()?;
            if !(1..=EVENT_CHUNKS_MAX).contains(&settled.chunks.len()) {
                return Err(Disposition::term(format_args!(
                    "an event of {} chunks, not 1 to {EVENT_CHUNKS_MAX}",
                    settled.chunks.len()
                )));
            }
            let rows = settled.chunks.iter().map(|chunk| deliveries(channel, chunk));
            rows.collect::<Result<_, _>>()?
        }
        other => return Err(Disposition::term(format_args!("nothing to count on {other}"))),
    };
    if let Some(row) = rows.iter().find(|row| hour_of(row.at()).is_none()) {
        return Err(Disposition::term(format_args!(
            "{} us since 1970 is no moment",
            row.at().0
        )));
    }
    Ok(rows)
}

fn deliveries(channel: Channel, chunk: &SettledChunk) -> Result<Row, Disposition> {
    if chunk.revision == 0 {
        return Err(Disposition::term("a chunk's revisions begin at 1"));
    }
    Ok(Row::Deliveries(DeliveriesRow {
        author: UserKey(chunk.author_key),
        chunk: ChunkRef {
            post: PostId(chunk.post_id),
            channel,
            chunk: ChunkId(chunk.chunk_id),
        },
        state: Counted {
            revision: chunk.revision,
            counts: SettledCounts {
                delivered: chunk.delivered_count,
                suppressed: chunk.suppressed_count,
                expired: chunk.expired_count,
                dead: chunk.dead_count,
            },
        },
        change: Change::default(),
        accepted_at: Timestamp(chunk.accepted_at_us),
        settled_at: Timestamp(chunk.settled_at_us),
    }))
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
