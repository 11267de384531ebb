//! Pages of a post's recipients with their states.

use herald_model::{Channel, DeliveryState, PostId, UserKey};

use super::{audit::SNAPSHOT, channel_number, row};
use crate::{
    RecipientStatus, RecordedOutcome, Result,
    cluster::postgres::{Attempt, Postgres, Transaction},
    embedded::ledger::{recipient_states, status},
};

/// Number of chunks that are read at a time: with some thousand recipients each, they are what a page holds in memory.
const CHUNKS_PER_READ: usize = 4;

/// The arguments of [`Ledger::recipients`](crate::Ledger::recipients).
#[derive(Debug, Clone, Copy)]
pub(super) struct Query {
    pub(super) post: PostId,
    pub(super) channel: Channel,
    pub(super) state: Option<DeliveryState>,
    pub(super) after: Option<UserKey>,
    pub(super) limit: usize,
}

/// A planned chunk with recipients that may match: its id, first and last recipient.
type ChunkBounds = (i64, i64, i64);

impl Query {
    /// Reads one page from one snapshot. Reads the recipients of the chunks that the page needs, not those after it.
    pub(super) async fn read(self, postgres: &Postgres) -> Result<Vec<RecipientStatus>> {
        let mut found = postgres
            .call("list the recipients of a post", async || {
                let mut snapshot = postgres.pool().begin_with(SNAPSHOT).await?;
                let found = self.candidates(&mut snapshot).await?;
                snapshot.commit().await?;
                Ok(found)
            })
            .await?;
        // A user should be in one chunk only. If not, list the user once, with a final state if there is one.
        found.sort_by_key(|recipient| (recipient.user, recipient.state == DeliveryState::Pending));
        found.dedup_by_key(|recipient| recipient.user);
        found.truncate(self.limit);
        Ok(found)
    }

    async fn candidates(self, snapshot: &mut Transaction) -> Attempt<Vec<RecipientStatus>> {
        let mut found: Vec<RecipientStatus> = Vec::new();
        let mut reached = -1;
        let chunks = self.chunks(snapshot).await?;
        // Without a state, one chunk has enough recipients for most pages.
        let per_read = if self.state.is_none() { 1 } else { CHUNKS_PER_READ };
        for chunks in chunks.chunks(per_read) {
            let first = chunks.first().map_or(0, |(_, first, _)| *first);
            // Chunks are sorted by first recipient, so `found` is complete up to this one unless chunks overlap.
            if found.len() >= self.limit && reached < first {
                break;
            }
            reached = chunks.iter().map(|(_, _, last)| *last).fold(reached, i64::max);
            let ids: Vec<i64> = chunks.iter().map(|(id, ..)| *id).collect();
            self.read_chunks(snapshot, &ids, &mut found).await?;
        }
        Ok(found)
    }

    /// The chunks with recipients greater than `after`, and with some in the wanted state, by first recipient.
    async fn chunks(self, snapshot: &mut Transaction) -> Attempt<Vec<ChunkBounds>> {
        const SQL: &str = "
            SELECT c.chunk, c.first_user, c.last_user
            FROM herald.ledger_chunks c LEFT JOIN herald.ledger_outcomes o USING (post, channel, chunk)
            WHERE c.post = $1 AND c.channel = $2 AND c.last_user > $3 AND c.recipients_count > 0
                AND c.post >= (SELECT first_post FROM herald.ledger_trim)
                AND CASE $4::text
                    WHEN 'delivered' THEN o.delivered > 0
                    WHEN 'suppressed' THEN o.suppressed > 0
                    WHEN 'expired' THEN o.expired > 0
                    WHEN 'dead' THEN o.dead > 0
                    WHEN 'pending' THEN
                        c.recipients_count > coalesce(o.delivered + o.suppressed + o.expired + o.dead, 0)
                    ELSE true
                END
            ORDER BY c.first_user";
        let state = self.state.map(|state| match state {
            DeliveryState::Pending => "pending",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Suppressed => "suppressed",
            DeliveryState::Expired => "expired",
            DeliveryState::Dead => "dead",
        });
        Ok(sqlx::query_as(SQL)
            .bind(self.post.0.cast_signed())
            .bind(channel_number(self.channel))
            .bind(self.after.map_or(-1, |user| i64::from(user.0)))
            .bind(state)
            .fetch_all(&mut **snapshot)
            .await?)
    }

    /// Adds the recipients of chunks that match.
    async fn read_chunks(
        self,
        snapshot: &mut Transaction,
        ids: &[i64],
        found: &mut Vec<RecipientStatus>,
    ) -> Attempt<()> {
        const SQL: &str = "
            SELECT c.recipients_count, c.recipients, o.revision, o.delivered, o.outcome
            FROM herald.ledger_chunks c LEFT JOIN herald.ledger_outcomes o USING (post, channel, chunk)
            WHERE c.post = $1 AND c.channel = $2 AND c.chunk = ANY($3)";
        type Row = (i32, Vec<u8>, Option<i64>, Option<i32>, Option<Vec<u8>>);
        let rows: Vec<Row> = sqlx::query_as(SQL)
            .bind(self.post.0.cast_signed())
            .bind(channel_number(self.channel))
            .bind(ids)
            .fetch_all(&mut **snapshot)
            .await?;
        for (count, recipients, revision, delivered, outcome) in rows {
            let recipients = row::recipients(recipients, count)?;
            let recorded: Option<RecordedOutcome> = match revision.zip(delivered) {
                Some((revision, delivered)) => Some(row::recorded(revision, delivered, outcome.as_deref())?),
                None => None,
            };
            let outcome = recorded.as_ref().map(|recorded| &recorded.outcome);
            found.extend(
                recipient_states(&recipients, outcome)
                    .into_iter()
                    .filter(|(user, state)| {
                        Some(*user) > self.after && self.state.is_none_or(|wanted| *state == wanted)
                    })
                    .map(|(user, state)| status(user, state, outcome)),
            );
        }
        Ok(())
    }
}
