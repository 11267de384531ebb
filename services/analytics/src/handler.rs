//! Handler for messages of POSTS and EVENTS.

use std::sync::Arc;

use async_trait::async_trait;
use herald_mesh::{Delivery, Disposition, Handler, Subject};
use herald_model::time::Timestamp;
use herald_model::{Channel, ChunkId, PostId, UserId, UserKey};
use herald_posts::author_key;
use herald_proto::EVENT_CHUNKS_MAX;
use herald_proto::mesh_v1::{DeliveriesSettled, PostCreated, PostDeleted, SettledChunk};
use herald_runtime::wait::Waiting;
use herald_store::{ChunkRef, Counted, SettledCounts, Users};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::batcher::Submission;
use crate::domain::{CountsDelta, DeletionRow, DeliveriesRow, PostRow, Row, hour_of};

/// Sends messages to the batcher and waits for their disposition.
pub(crate) struct MessageHandler {
    pub(crate) batcher: mpsc::Sender<Submission>,
    pub(crate) users: Arc<dyn Users>,
    pub(crate) waiting: Waiting,
    /// Cancelled when the service stops.
    pub(crate) stop: CancellationToken,
}

impl MessageHandler {
    /// Looks up the author of a post whose message lacks the author's key. While the store is away, the message waits
    /// here.
    async fn resolve_author(&self, post: &mut PostRow) -> Result<(), Disposition> {
        let key = self
            .waiting
            .until_done(&self.stop, herald_store::Error::is_away, || {
                author_key(&*self.users, post.author, &post.author_id)
            });
        let key = key.await;
        let key = key.ok_or_else(|| Disposition::retry("analytics is shutting down"))?;
        post.author = key.map_err(Disposition::from)?;
        Ok(())
    }
}

#[async_trait]
impl Handler for MessageHandler {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let mut rows = match parse_rows(delivery) {
            Ok(rows) => rows,
            Err(disposition) => return disposition,
        };
        for row in &mut rows {
            if let Row::Post(post) = row
                && let Err(disposition) = self.resolve_author(post).await
            {
                return disposition;
            }
        }
        let (reply, disposition) = oneshot::channel();
        let submission = Submission {
            sequence: delivery.sequence,
            rows,
            link: delivery.link(),
            reply,
        };
        if self.batcher.send(submission).await.is_err() {
            return Disposition::retry("analytics is shutting down");
        }
        disposition
            .await
            .unwrap_or_else(|_| Disposition::retry("the batch was lost because the batcher stopped"))
    }

    fn handles_batches(&self) -> bool {
        true
    }
}

/// Parses the rows of a message, at least one; the error is the disposition of a malformed message.
pub(crate) fn parse_rows(delivery: &Delivery) -> Result<Vec<Row>, Disposition> {
    let rows = match delivery.subject {
        Subject::PostCreated(lane) => {
            let post: PostCreated = delivery.decode()?;
            vec![Row::Post(Box::new(PostRow {
                post: PostId(delivery.sequence),
                author: UserKey(post.author_key),
                author_id: UserId::from_stored(post.author_id)
                    .map_err(|error| Disposition::term(format_args!("author_id {error}")))?,
                lane,
                text_bytes: saturating_count(post.text.len()),
                links: saturating_count(post.links.len()),
                media: saturating_count(post.media_urls.len()),
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
                    "the event has {} chunks, must have 1 to {EVENT_CHUNKS_MAX}",
                    settled.chunks.len()
                )));
            }
            let rows = settled
                .chunks
                .iter()
                .map(|chunk| parse_deliveries_row(channel, chunk));
            rows.collect::<Result<_, _>>()?
        }
        other => return Err(Disposition::term(format_args!("unexpected subject {other}"))),
    };
    if let Some(row) = rows.iter().find(|row| hour_of(row.at()).is_none()) {
        return Err(Disposition::term(format_args!(
            "the time {} us since 1970 is out of range",
            row.at().0
        )));
    }
    Ok(rows)
}

fn parse_deliveries_row(channel: Channel, chunk: &SettledChunk) -> Result<Row, Disposition> {
    if chunk.revision == 0 {
        return Err(Disposition::term("the revision of a chunk must not be 0"));
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
        delta: CountsDelta::default(),
        accepted_at: Timestamp(chunk.accepted_at_us),
        settled_at: Timestamp(chunk.settled_at_us),
    }))
}

fn saturating_count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use herald_model::Lane;
    use proptest::{collection::vec, prelude::*};
    use prost::Message as _;

    use super::*;
    use crate::domain::{Entry, RowPosition, group_into_files};

    fn settled() -> impl Strategy<Value = DeliveriesSettled> {
        let counts = (herald_fuzz::u32s(), herald_fuzz::u32s(), herald_fuzz::u32s());
        let ids = (herald_fuzz::u64s(), herald_fuzz::u64s(), herald_fuzz::u64s());
        let times = (herald_fuzz::micros(), herald_fuzz::micros());
        let chunk =
            (counts, ids, times).prop_map(|(counts, (post_id, chunk_id, revision), times)| SettledChunk {
                post_id,
                chunk_id,
                revision,
                delivered_count: counts.0,
                expired_count: counts.1,
                dead_count: counts.2,
                accepted_at_us: times.0,
                settled_at_us: times.1,
                ..SettledChunk::default()
            });
        vec(chunk, 0..4).prop_map(|chunks| DeliveriesSettled { chunks })
    }

    /// Parses a message and computes what its files would have.
    fn check(subject: Subject, payload: Vec<u8>) -> Result<(), TestCaseError> {
        let rows = match parse_rows(&Delivery::without_consumer(subject, 7, payload)) {
            Ok(rows) => rows,
            Err(disposition) => {
                let is_terminated = matches!(disposition, Disposition::Term { .. });
                prop_assert!(is_terminated);
                return Ok(());
            }
        };
        let count = rows.len();
        prop_assert!((1..=EVENT_CHUNKS_MAX).contains(&count));
        let entries = rows.into_iter().enumerate().map(|(index, row)| Entry {
            position: RowPosition {
                sequence: 7,
                index,
                count,
            },
            row,
        });
        let mut files = group_into_files("EVENTS", entries);
        prop_assert_eq!(files.iter().map(|file| file.entries.len()).sum::<usize>(), count);
        let mut counted = BTreeMap::new();
        for file in &mut files {
            file.drop_stale_rows(&mut counted);
            prop_assert!(file.path(1).contains("/date="));
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn bytes_near_an_event_are_rows_or_terminated(
            payload in herald_fuzz::near(settled().prop_map(|event| event.encode_to_vec())),
        ) {
            check(Subject::Settled(Channel::Push), payload)?;
        }

        #[test]
        fn bytes_near_a_post_are_a_row_or_terminated(
            payload in herald_fuzz::near((".{1,20}", herald_fuzz::micros(), herald_fuzz::u32s()).prop_map(
                |(author_id, accepted_at_us, push_ttl_seconds)| PostCreated {
                    author_id,
                    accepted_at_us,
                    push_ttl_seconds,
                    links: vec!["https://example.org/".into()],
                    ..PostCreated::default()
                }.encode_to_vec(),
            )),
        ) {
            check(Subject::PostCreated(Lane::Low), payload)?;
        }

        #[test]
        fn bytes_near_a_deletion_are_a_row_or_terminated(
            payload in herald_fuzz::near((herald_fuzz::u64s(), herald_fuzz::micros()).prop_map(
                |(post_id, deleted_at_us)| PostDeleted { post_id, author_key: 1, deleted_at_us }.encode_to_vec(),
            )),
        ) {
            check(Subject::PostDeleted(Lane::Low), payload)?;
        }
    }
}
