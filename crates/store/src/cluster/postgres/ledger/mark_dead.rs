//! Marking the recipients of dead messages.

use herald_model::{Recipients, time::Timestamp};

use super::{
    channel_number,
    partitions::Partitions,
    row::{OutcomeColumns, OutcomeRow, recipients},
};
use crate::{
    DeadMessage, Error, ErrorKind, ExpectedRevision, MarkedDead, Outcome, Result, Settlement,
    cluster::postgres::{Attempt, Postgres},
    embedded::ledger::{
        row::OutcomeHead,
        settle::{delivered_at, with_pending_dead},
    },
};

/// Attempts at a chunk whose first outcome another writer inserts at the same time.
const ATTEMPTS_MAX: usize = 3;

/// Marks the pending recipients of a dead message dead. `None` if its chunk is not planned.
pub(super) async fn mark(
    postgres: &Postgres,
    partitions: &Partitions,
    dead: &DeadMessage,
    at: Timestamp,
) -> Result<Option<MarkedDead>> {
    partitions.ensure([dead.post]).await?;
    postgres
        .call("mark a chunk dead in the ledger", async || {
            let Some(planned) = planned(postgres, dead).await? else {
                return Ok(None);
            };
            for _ in 0..ATTEMPTS_MAX {
                if let Some(marked) = attempt(postgres, dead, &planned, at).await? {
                    return Ok(Some(marked));
                }
            }
            Err(Error::new(
                ErrorKind::Unavailable,
                "another writer changes the outcome of the chunk at the same time",
            )
            .into())
        })
        .await
}

async fn planned(postgres: &Postgres, dead: &DeadMessage) -> Attempt<Option<Recipients>> {
    const SQL: &str = "
        SELECT recipients_count, recipients FROM herald.ledger_chunks
        WHERE post = $1 AND channel = $2 AND chunk = $3";
    let row: Option<(i32, Vec<u8>)> = sqlx::query_as(SQL)
        .bind(dead.post.0.cast_signed())
        .bind(channel_number(dead.channel))
        .bind(dead.chunk.0.cast_signed())
        .fetch_optional(postgres.pool())
        .await?;
    Ok(row.map(|(count, bytes)| recipients(bytes, count)).transpose()?)
}

/// Marks a chunk; `None` if another writer inserted its first outcome meanwhile. The claim of the chunk stays: its
/// worker may still be sending, and a redrive must wait for it.
async fn attempt(
    postgres: &Postgres,
    dead: &DeadMessage,
    planned: &Recipients,
    at: Timestamp,
) -> Attempt<Option<MarkedDead>> {
    const READ: &str = "
        SELECT revision, delivered, suppressed, expired, dead, first_delivered_at, last_delivered_at, outcome
        FROM herald.ledger_outcomes WHERE post = $1 AND channel = $2 AND chunk = $3 FOR UPDATE";
    const INSERT: &str = "
        INSERT INTO herald.ledger_outcomes (
            post, channel, chunk, revision, first_delivered_at, last_delivered_at,
            delivered, suppressed, expired, dead, suppressed_by, outcome
        ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::integer[], $12)
        ON CONFLICT DO NOTHING";
    const UPDATE: &str = "
        UPDATE herald.ledger_outcomes SET
            revision = $4, first_delivered_at = $5, last_delivered_at = $6,
            delivered = $7, suppressed = $8, expired = $9, dead = $10, suppressed_by = $11::integer[], outcome = $12
        WHERE post = $1 AND channel = $2 AND chunk = $3";
    let (post, chunk) = (dead.post.0.cast_signed(), dead.chunk.0.cast_signed());
    let channel = channel_number(dead.channel);
    let mut transaction = postgres.begin().await?;
    let row: Option<OutcomeRow> = sqlx::query_as(READ)
        .bind(post)
        .bind(channel)
        .bind(chunk)
        .fetch_optional(&mut *transaction)
        .await?;
    let before = row.as_ref().map_or_else(OutcomeHead::default, OutcomeRow::head);
    let recorded = row.as_ref().map(OutcomeRow::recorded).transpose()?;
    let outcome_before = recorded.as_ref().map(|recorded| recorded.outcome.clone());
    let settlement = Settlement {
        post: dead.post,
        channel: dead.channel,
        chunk: dead.chunk,
        base: ExpectedRevision::Revision(before.revision),
        outcome: with_pending_dead(planned, recorded, dead.generation),
        at,
        keep_claim: None,
    };
    let mut revision = before.revision;
    if outcome_before.as_ref() != Some(&settlement.outcome) {
        revision += 1;
        let columns = OutcomeColumns::of(&settlement.outcome);
        let times = delivered_at(&before, &settlement);
        let counts = columns.counts;
        let written = sqlx::query(if row.is_some() { UPDATE } else { INSERT })
            .bind(post)
            .bind(channel)
            .bind(chunk)
            .bind(revision.cast_signed())
            .bind(times.map(|(first, _)| first.0))
            .bind(times.map(|(_, last)| last.0))
            .bind(counts.delivered.cast_signed())
            .bind(counts.suppressed.cast_signed())
            .bind(counts.expired.cast_signed())
            .bind(counts.dead.cast_signed())
            .bind(columns.suppressed_by)
            .bind(columns.outcome)
            .execute(&mut *transaction)
            .await?;
        if written.rows_affected() == 0 {
            return Ok(None);
        }
    }
    transaction.commit().await?;
    let counts = settlement.outcome.counts();
    let dead_recipients = match settlement.outcome {
        Outcome::Delivered { .. } => Recipients::default(),
        Outcome::Mixed { dead, .. } => dead,
    };
    Ok(Some(MarkedDead {
        dead_recipients,
        revision,
        counts,
    }))
}
