//! Rows of the ledger as values of the store, and the counts of a post.

use std::sync::LazyLock;

use herald_model::{Channel, ChunkId, PostId, Recipients, time::Timestamp};
use sqlx::{AssertSqlSafe, FromRow, Row as _, postgres::PgRow};

use super::{channel_number, channel_of};
use crate::{
    ChannelCounts, Error, ErrorKind, Outcome, PostCounts, RecordedOutcome, Result, SettledCounts,
    SuppressedReason,
    cluster::postgres::Postgres,
    embedded::ledger::row::{self, OutcomeHead},
};

/// The recipients of a chunk's row, or of a backfill's.
pub(crate) fn recipients(bytes: Vec<u8>, count: i32) -> Result<Recipients> {
    Recipients::decode(bytes.into(), count.cast_unsigned()).map_err(|error| {
        Error::with_source(
            ErrorKind::Corrupt,
            "the recipients of a chunk in the ledger are malformed",
            error,
        )
    })
}

/// The columns of an outcome without its revision and times.
pub(crate) struct OutcomeColumns {
    pub(crate) counts: SettledCounts,
    /// Array literal; `None` if no reason is known.
    pub(crate) suppressed_by: Option<String>,
    /// `None` if all recipients are delivered.
    pub(crate) outcome: Option<Vec<u8>>,
}

impl OutcomeColumns {
    pub(crate) fn of(outcome: &Outcome) -> Self {
        let mut columns = Self {
            counts: outcome.counts(),
            suppressed_by: None,
            outcome: None,
        };
        if let Outcome::Mixed { details, .. } = outcome {
            columns.outcome = Some(row::encode_outcome(0, outcome, None));
            let mut counts = [0_u32; SuppressedReason::ALL.len()];
            for (reason, users) in &details.suppressed {
                counts[*reason as usize - 1] += users.len();
            }
            if counts.iter().any(|count| *count > 0) {
                let counts: Vec<String> = counts.iter().map(u32::to_string).collect();
                columns.suppressed_by = Some(format!("{{{}}}", counts.join(",")));
            }
        }
        columns
    }
}

/// The recorded outcome of a chunk.
pub(super) struct OutcomeRow {
    revision: i64,
    delivered: i32,
    suppressed: i32,
    expired: i32,
    dead: i32,
    first_delivered_at: Option<i64>,
    last_delivered_at: Option<i64>,
    outcome: Option<Vec<u8>>,
}

impl FromRow<'_, PgRow> for OutcomeRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            revision: row.try_get("revision")?,
            delivered: row.try_get("delivered")?,
            suppressed: row.try_get("suppressed")?,
            expired: row.try_get("expired")?,
            dead: row.try_get("dead")?,
            first_delivered_at: row.try_get("first_delivered_at")?,
            last_delivered_at: row.try_get("last_delivered_at")?,
            outcome: row.try_get("outcome")?,
        })
    }
}

impl OutcomeRow {
    pub(super) fn recorded(&self) -> Result<RecordedOutcome> {
        recorded(self.revision, self.delivered, self.outcome.as_deref())
    }

    pub(super) fn head(&self) -> OutcomeHead {
        OutcomeHead {
            revision: self.revision.cast_unsigned(),
            counts: SettledCounts {
                delivered: self.delivered.cast_unsigned(),
                suppressed: self.suppressed.cast_unsigned(),
                expired: self.expired.cast_unsigned(),
                dead: self.dead.cast_unsigned(),
            },
            delivered_at: (self.first_delivered_at.zip(self.last_delivered_at))
                .map(|(first, last)| (Timestamp(first), Timestamp(last))),
        }
    }
}

/// The outcome of a row's columns.
pub(super) fn recorded(revision: i64, delivered: i32, outcome: Option<&[u8]>) -> Result<RecordedOutcome> {
    let outcome = match outcome {
        None => Outcome::Delivered {
            count: delivered.cast_unsigned(),
        },
        Some(bytes) => row::decode_outcome(bytes)?.outcome,
    };
    Ok(RecordedOutcome {
        revision: revision.cast_unsigned(),
        outcome,
    })
}

/// Reads the outcome of a chunk.
pub(super) async fn read_outcome(
    postgres: &Postgres,
    post: PostId,
    channel: Channel,
    chunk: ChunkId,
) -> Result<Option<RecordedOutcome>> {
    const SQL: &str = "
        SELECT revision, delivered, outcome FROM herald.ledger_outcomes
        WHERE post = $1 AND channel = $2 AND chunk = $3";
    let row: Option<(i64, i32, Option<Vec<u8>>)> = postgres
        .call("read an outcome of the ledger", async || {
            Ok(sqlx::query_as(SQL)
                .bind(post.0.cast_signed())
                .bind(channel_number(channel))
                .bind(chunk.0.cast_signed())
                .fetch_optional(postgres.pool())
                .await?)
        })
        .await?;
    row.map(|(revision, delivered, outcome)| recorded(revision, delivered, outcome.as_deref()))
        .transpose()
}

/// A row for each channel with outcomes, or one without a channel.
struct CountsRow {
    planned: bool,
    timeline: i64,
    push: i64,
    channel: Option<i16>,
    delivered: i64,
    suppressed: i64,
    expired: i64,
    dead: i64,
    first_delivered_at: Option<i64>,
    last_delivered_at: Option<i64>,
    suppressed_by: Option<Vec<i64>>,
}

impl FromRow<'_, PgRow> for CountsRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            planned: row.try_get("planned")?,
            timeline: row.try_get("timeline")?,
            push: row.try_get("push")?,
            channel: row.try_get("channel")?,
            delivered: row.try_get("delivered")?,
            suppressed: row.try_get("suppressed")?,
            expired: row.try_get("expired")?,
            dead: row.try_get("dead")?,
            first_delivered_at: row.try_get("first_delivered_at")?,
            last_delivered_at: row.try_get("last_delivered_at")?,
            suppressed_by: row.try_get("suppressed_by")?,
        })
    }
}

/// One statement, so that the counts are of one moment.
static COUNTS: LazyLock<String> = LazyLock::new(|| {
    let by_reason: Vec<String> = SuppressedReason::ALL
        .iter()
        .map(|reason| format!("coalesce(sum(suppressed_by[{}]), 0)::bigint", *reason as u8))
        .collect();
    format!(
        "SELECT s.*, o.channel,
            coalesce(delivered, 0) AS delivered, coalesce(suppressed, 0) AS suppressed,
            coalesce(expired, 0) AS expired, coalesce(dead, 0) AS dead,
            first_delivered_at, last_delivered_at, suppressed_by
        FROM (
            SELECT bool_or(last) AS planned, sum(timeline)::bigint AS timeline, sum(push)::bigint AS push
            FROM herald.ledger_slices
            WHERE post = $1 AND post >= (SELECT first_post FROM herald.ledger_trim)
            HAVING count(*) > 0
        ) s LEFT JOIN (
            SELECT channel, sum(delivered)::bigint AS delivered, sum(suppressed)::bigint AS suppressed,
                sum(expired)::bigint AS expired, sum(dead)::bigint AS dead,
                min(first_delivered_at) AS first_delivered_at, max(last_delivered_at) AS last_delivered_at,
                ARRAY[{}] AS suppressed_by
            FROM herald.ledger_outcomes WHERE post = $1
            GROUP BY channel
        ) o ON true",
        by_reason.join(", ")
    )
});

/// Counts the deliveries of a post.
pub(super) async fn count(postgres: &Postgres, post: PostId) -> Result<Option<PostCounts>> {
    let rows: Vec<CountsRow> = postgres
        .call("count the deliveries of a post", async || {
            Ok(sqlx::query_as(AssertSqlSafe(COUNTS.as_str()))
                .bind(post.0.cast_signed())
                .fetch_all(postgres.pool())
                .await?)
        })
        .await?;
    let Some(first) = rows.first() else {
        return Ok(None);
    };
    let mut counts = PostCounts {
        planned: first.planned,
        ..PostCounts::default()
    };
    counts.timeline.targeted = first.timeline.cast_unsigned();
    counts.push.targeted = first.push.cast_unsigned();
    for row in rows {
        let Some(channel) = row.channel else { continue };
        let channel = match channel_of(channel)? {
            Channel::Timeline => &mut counts.timeline,
            Channel::Push => &mut counts.push,
        };
        row.add_to(channel);
    }
    for channel in [&mut counts.timeline, &mut counts.push] {
        let settled = channel.delivered + channel.suppressed + channel.expired + channel.dead;
        channel.pending = channel.targeted.saturating_sub(settled);
    }
    Ok(Some(counts))
}

impl CountsRow {
    fn add_to(self, channel: &mut ChannelCounts) {
        channel.delivered = self.delivered.cast_unsigned();
        channel.suppressed = self.suppressed.cast_unsigned();
        channel.expired = self.expired.cast_unsigned();
        channel.dead = self.dead.cast_unsigned();
        channel.first_delivered_at = self.first_delivered_at.map(Timestamp);
        channel.last_delivered_at = self.last_delivered_at.map(Timestamp);
        let counts = SuppressedReason::ALL
            .into_iter()
            .zip(self.suppressed_by.unwrap_or_default());
        for (reason, count) in counts {
            channel.suppressed_by.add(reason, count.cast_unsigned());
        }
    }
}
