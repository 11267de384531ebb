//! Pages of a post's recipients with their states.

use fjall::{Keyspace, Readable, Snapshot};
use herald_model::{Channel, ChunkId, DeliveryState, PostId, UserKey};

use super::{
    recipient_states,
    row::{self, RowKind},
    status,
};
use crate::{RecipientStatus, Result, embedded::database::map_err};

/// The arguments of [`Ledger::recipients`](crate::Ledger::recipients).
#[derive(Debug, Clone, Copy)]
pub(super) struct RecipientsQuery {
    pub(super) post: PostId,
    pub(super) channel: Channel,
    pub(super) state: Option<DeliveryState>,
    pub(super) after: Option<UserKey>,
    pub(super) limit: usize,
}

/// A planned chunk without its recipients.
struct ChunkBounds {
    chunk: ChunkId,
    first: UserKey,
    last: UserKey,
}

impl RecipientsQuery {
    /// Reads one page. Decodes the recipients of the chunks that the page needs, not those of the chunks after it.
    pub(super) fn read(self, rows: &Keyspace, snapshot: &Snapshot) -> Result<Vec<RecipientStatus>> {
        let mut found: Vec<RecipientStatus> = Vec::new();
        let mut reached = None;
        for bounds in self.chunks(rows, snapshot)? {
            // Chunks are sorted by first recipient, so `found` is complete up to this chunk unless chunks overlap.
            if found.len() >= self.limit && reached < Some(bounds.first) {
                break;
            }
            reached = reached.max(Some(bounds.last));
            found.extend(self.statuses(bounds.chunk, rows, snapshot)?);
        }
        // A user should be in one chunk only. If not, list the user once, with a final state if there is one.
        found.sort_by_key(|recipient| (recipient.user, recipient.state == DeliveryState::Pending));
        found.dedup_by_key(|recipient| recipient.user);
        found.truncate(self.limit);
        Ok(found)
    }

    /// The chunks with recipients greater than `after`, by first recipient.
    fn chunks(self, rows: &Keyspace, snapshot: &Snapshot) -> Result<Vec<ChunkBounds>> {
        let mut chunks = Vec::new();
        for entry in snapshot.prefix(rows, row::channel_prefix(self.post, RowKind::Chunk, self.channel)) {
            let (key, value) = entry.into_inner().map_err(map_err)?;
            let (last, recipients) = row::decode_chunk(&value)?;
            if Some(last) <= self.after {
                continue;
            }
            if let Some(first) = recipients.first()? {
                let chunk = row::read_chunk_key(&key)?.1;
                chunks.push(ChunkBounds { chunk, first, last });
            }
        }
        chunks.sort_unstable_by_key(|bounds| bounds.first);
        Ok(chunks)
    }

    /// The recipients of a chunk that match.
    fn statuses(self, chunk: ChunkId, rows: &Keyspace, snapshot: &Snapshot) -> Result<Vec<RecipientStatus>> {
        let get = |kind| {
            let key = row::chunk_key(self.post, kind, self.channel, chunk);
            snapshot.get(rows, key).map_err(map_err)
        };
        let planned = get(RowKind::Chunk)?.ok_or_else(row::malformed)?;
        let recipients = row::decode_chunk(&planned)?.1.decode()?;
        let recorded = get(RowKind::Outcome)?
            .map(|row| row::decode_outcome(&row))
            .transpose()?;
        let outcome = recorded.as_ref().map(|recorded| &recorded.outcome);
        Ok(recipient_states(&recipients, outcome)
            .into_iter()
            .filter(|(user, state)| {
                Some(*user) > self.after && self.state.is_none_or(|wanted| *state == wanted)
            })
            .map(|(user, state)| status(user, state, outcome))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use herald_model::{FollowVersion, Recipients, varint};

    use super::*;
    use crate::{
        ChunkPlan, Ledger as _, SlicePlan,
        embedded::{ledger::Ledger, testing::Store},
    };

    const POST: PostId = PostId(7);

    /// A ledger with a post of three chunks: users 1 to 10, 11 to 20, and 21 to 30.
    async fn ledger_of_three_chunks(store: &Store) -> Ledger {
        let ledger = Ledger::open(store.database()).unwrap();
        let chunks = [1..=10, 11..=20, 21..=30].map(|users| ChunkPlan {
            channel: Channel::Push,
            recipients: Recipients::from_sorted(users.map(UserKey)),
        });
        let plan = SlicePlan {
            post: POST,
            author: UserKey(3),
            slice: 0,
            version: FollowVersion(1),
            chunks: chunks.into(),
            next_after: None,
        };
        ledger.plan(plan).await.unwrap();
        ledger
    }

    async fn page(ledger: &Ledger, after: Option<u32>, limit: usize) -> Result<Vec<u32>> {
        let after = after.map(UserKey);
        let page = ledger.recipients(POST, Channel::Push, None, after, limit).await?;
        Ok(page.into_iter().map(|recipient| recipient.user.0).collect())
    }

    #[tokio::test]
    async fn a_page_decodes_only_the_chunks_that_it_needs() {
        let store = Store::new();
        let ledger = ledger_of_three_chunks(&store).await;
        // The third chunk keeps its first and last recipient; the rest of its set is malformed.
        let mut malformed = Vec::new();
        malformed.push(1);
        for number in [30, 10, 10] {
            varint::write(&mut malformed, number);
        }
        malformed.push(21);
        malformed.extend([0; 9]);
        let chunk = Recipients::from_sorted((21..=30).map(UserKey)).chunk_id();
        let key = row::chunk_key(POST, RowKind::Chunk, Channel::Push, chunk);
        ledger.rows.insert(key, malformed).unwrap();

        assert_eq!(page(&ledger, None, 5).await.unwrap(), [1, 2, 3, 4, 5]);
        assert_eq!(page(&ledger, Some(9), 3).await.unwrap(), [10, 11, 12]);
        assert_eq!(
            page(&ledger, Some(10), 10).await.unwrap(),
            (11..=20).collect::<Vec<_>>()
        );
        let error = page(&ledger, Some(10), 11).await.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Corrupt);
    }

    #[tokio::test]
    async fn a_page_is_read_outside_of_the_async_thread() {
        let store = Store::new();
        let ledger = ledger_of_three_chunks(&store).await;
        let mut read = ledger.recipients(POST, Channel::Push, None, None, 10);
        // On this runtime's only thread, the first poll starts the read and can't complete it.
        assert!((&mut read).now_or_never().is_none());
        assert_eq!(read.await.unwrap().len(), 10);
    }
}
