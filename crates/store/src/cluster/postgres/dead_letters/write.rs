//! Writes of dead letters outside of an operation's steps.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use herald_model::{Channel, time::Timestamp};
use sqlx::{FromRow, PgConnection, Postgres as Sql, QueryBuilder, postgres::PgRow};

use super::row::{COLUMNS, DeadLetterRow, number, text};
use crate::{
    DeadLetter, DeadLetterId, DeadLetterState, DeadLetterVersion, Error, ErrorKind, Inserted, MessageRef,
    OperationId, Reopened, Reopening, Result,
    cluster::postgres::{Attempt, Postgres},
    embedded::dead_letters::row::{CAUSES, STATES, encode_dead_letter},
};

/// Locks dead letters in ascending order and reads columns of them.
pub(super) async fn lock<R>(connection: &mut PgConnection, columns: &str, ids: &[i64]) -> Attempt<Vec<R>>
where
    R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let mut query = QueryBuilder::<Sql>::new(format!("SELECT {columns} FROM herald.dead_letters"));
    query
        .push(" WHERE id = ANY(")
        .push_bind(ids)
        .push(") ORDER BY id FOR UPDATE");
    Ok(query.build_query_as().fetch_all(connection).await?)
}

/// Inserts the dead letters whose message and consumer have none yet.
pub(super) async fn insert(postgres: &Postgres, dead_letters: &[DeadLetter]) -> Result<Vec<Inserted>> {
    // Transactions that wait for each other's rows do so in the same order.
    let mut sorted: Vec<&DeadLetter> = dead_letters.iter().collect();
    sorted.sort_by_key(|dead_letter| {
        let MessageRef {
            stream,
            consumer,
            sequence,
        } = &dead_letter.origin;
        (stream, consumer, *sequence)
    });
    let (new, existing) = postgres
        .call("insert dead letters", async || {
            let new: HashSet<i64> = insert_new(postgres, &sorted).await?.into_iter().collect();
            let existing = find_origins(postgres, &sorted).await?;
            Ok((new, existing))
        })
        .await?;
    // A message that comes twice is new once.
    let mut reported = HashSet::new();
    dead_letters
        .iter()
        .map(|dead_letter| {
            let id = existing.get(&key(&dead_letter.origin)).copied().ok_or_else(|| {
                Error::new(
                    ErrorKind::Corrupt,
                    format!("the id {} belongs to another dead letter", dead_letter.id.0),
                )
            })?;
            Ok(Inserted {
                id: DeadLetterId(id.cast_unsigned()),
                new: id == dead_letter.id.0.cast_signed() && new.contains(&id) && reported.insert(id),
            })
        })
        .collect()
}

/// The columns of a message that identify its dead letter.
type OriginKey = (String, String, i64);

fn key(origin: &MessageRef) -> OriginKey {
    (
        text(&origin.stream),
        text(&origin.consumer),
        origin.sequence.cast_signed(),
    )
}

async fn insert_new(postgres: &Postgres, dead_letters: &[&DeadLetter]) -> Attempt<Vec<i64>> {
    if dead_letters.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = QueryBuilder::<Sql>::new(
        "INSERT INTO herald.dead_letters (
            id, sequence, failure_group, author, post, first_failed_at, last_failed_at, stored_at, updated_at,
            cause, channel, stream, consumer, kind, reason, group_reason, content
        )
        SELECT * FROM unnest(",
    );
    macro_rules! push {
        ($kind:literal, $value:expr) => {
            query
                .push_bind(
                    dead_letters
                        .iter()
                        .map(|one| $value(one))
                        .collect::<Vec<_>>(),
                )
                .push(concat!("::", $kind, "[],"))
        };
    }
    push!("bigint", |one: &DeadLetter| one.id.0.cast_signed());
    push!("bigint", |one: &DeadLetter| one.origin.sequence.cast_signed());
    push!("bigint", |one: &DeadLetter| one.group.cast_signed());
    push!("bigint", |one: &DeadLetter| one
        .author
        .map(|author| i64::from(author.0)));
    push!("bigint", |one: &DeadLetter| one
        .post
        .map(|post| post.0.cast_signed()));
    push!("bigint", |one: &DeadLetter| one.first_failed_at.0);
    push!("bigint", |one: &DeadLetter| one.last_failed_at.0);
    push!("bigint", |one: &DeadLetter| one.stored_at.0);
    push!("bigint", |one: &DeadLetter| one.updated_at.0);
    push!("smallint", |one: &DeadLetter| number(&CAUSES, &one.cause));
    push!("smallint", |one: &DeadLetter| one
        .channel
        .map(|channel| number(&Channel::ALL, &channel)));
    push!("text", |one: &DeadLetter| text(&one.origin.stream));
    push!("text", |one: &DeadLetter| text(&one.origin.consumer));
    push!("text", |one: &DeadLetter| text(&one.kind));
    push!("text", |one: &DeadLetter| text(&one.reason.to_lowercase()));
    push!("text", |one: &DeadLetter| text(&one.group_reason));
    let content: Vec<_> = dead_letters.iter().map(|one| encode_dead_letter(one)).collect();
    query
        .push_bind(content)
        .push("::bytea[]) ON CONFLICT DO NOTHING RETURNING id");
    Ok(query.build_query_scalar().fetch_all(postgres.pool()).await?)
}

async fn find_origins(postgres: &Postgres, dead_letters: &[&DeadLetter]) -> Attempt<HashMap<OriginKey, i64>> {
    const SQL: &str = "
        SELECT stream, consumer, sequence, id FROM herald.dead_letters
        JOIN unnest($1::text[], $2::text[], $3::bigint[]) AS o (stream, consumer, sequence)
            USING (stream, consumer, sequence)";
    let (mut streams, mut consumers, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
    for (stream, consumer, sequence) in dead_letters.iter().map(|one| key(&one.origin)) {
        streams.push(stream);
        consumers.push(consumer);
        sequences.push(sequence);
    }
    let rows: Vec<(String, String, i64, i64)> = sqlx::query_as(SQL)
        .bind(streams)
        .bind(consumers)
        .bind(sequences)
        .persistent(false)
        .fetch_all(postgres.pool())
        .await?;
    let rows = rows.into_iter();
    Ok(rows
        .map(|(stream, consumer, sequence, id)| ((stream, consumer, sequence), id))
        .collect())
}

/// Records that a redrive failed.
pub(super) async fn reopen(postgres: &Postgres, reopening: &Reopening) -> Result<Reopened> {
    const REDRIVE: &str = "SELECT redrive FROM herald.dead_letters WHERE id = $1";
    let id = reopening.dead_letter.0.cast_signed();
    postgres
        .call("reopen a dead letter", async || {
            let mut transaction = postgres.begin().await?;
            // The redrive is locked first. It can't change as long as the round is the same.
            let redrive: Option<Option<i64>> = sqlx::query_scalar(REDRIVE)
                .bind(id)
                .fetch_optional(&mut *transaction)
                .await?;
            let Some(redrive) = redrive else {
                return Ok(Reopened::NotFound);
            };
            lock_operations(&mut transaction, &Vec::from_iter(redrive)).await?;
            let rows: Vec<DeadLetterRow> = lock(&mut transaction, COLUMNS, &[id]).await?;
            let Some(row) = rows.into_iter().next() else {
                return Ok(Reopened::NotFound);
            };
            if row.round != i64::from(reopening.round) || row.redrive != redrive {
                return Ok(Reopened::AlreadyRecorded);
            }
            let dead_letter = row.decode()?;
            let was_resolved = dead_letter.state == DeadLetterState::Resolved;
            if !was_resolved && dead_letter.state != DeadLetterState::Redriving {
                return Ok(Reopened::AlreadyRecorded);
            }
            write_failure(&mut transaction, dead_letter, reopening).await?;
            if let Some(operation) = redrive {
                let resolved = if was_resolved { -1 } else { 0 };
                count_outcomes(&mut transaction, operation, resolved, 1, reopening.failed_at).await?;
            }
            transaction.commit().await?;
            Ok(Reopened::Open)
        })
        .await
}

/// Writes the new failure of a dead letter.
async fn write_failure(
    connection: &mut PgConnection,
    mut dead_letter: DeadLetter,
    reopening: &Reopening,
) -> Attempt<()> {
    // `content` keeps the end of the time to live that the dead letter was inserted with, or a later one.
    const SQL: &str = "
        UPDATE herald.dead_letters SET
            state = $2, updated_at = $3, cause = $4, reason = $5, failure_group = $6, group_reason = $7,
            last_failed_at = $8, content = $9
        WHERE id = $1";
    dead_letter.cause = reopening.cause;
    dead_letter.reason.clone_from(&reopening.reason);
    dead_letter.group = reopening.group;
    dead_letter.group_reason.clone_from(&reopening.group_reason);
    dead_letter.last_failed_at = dead_letter.last_failed_at.max(reopening.failed_at);
    sqlx::query(SQL)
        .bind(dead_letter.id.0.cast_signed())
        .bind(number(&STATES, &DeadLetterState::Open))
        .bind(reopening.failed_at.0)
        .bind(number(&CAUSES, &reopening.cause))
        .bind(text(&reopening.reason.to_lowercase()))
        .bind(reopening.group.cast_signed())
        .bind(text(&reopening.group_reason))
        .bind(dead_letter.last_failed_at.0)
        .bind(encode_dead_letter(&dead_letter))
        .execute(connection)
        .await?;
    Ok(())
}

/// Locks operations in ascending order.
async fn lock_operations(connection: &mut PgConnection, ids: &[i64]) -> Attempt<()> {
    const SQL: &str =
        "SELECT id FROM herald.dead_letter_operations WHERE id = ANY($1) ORDER BY id FOR UPDATE";
    if !ids.is_empty() {
        sqlx::query(SQL).bind(ids).execute(connection).await?;
    }
    Ok(())
}

/// Adds outcomes to what a redrive counts. The last outcome of one that has sent all of its dead letters is its end.
async fn count_outcomes(
    connection: &mut PgConnection,
    operation: i64,
    resolved: i64,
    failed: i64,
    at: Timestamp,
) -> Attempt<()> {
    const SQL: &str = "
        UPDATE herald.dead_letter_operations SET
            resolved = greatest(0, resolved + $2),
            failed = failed + $3,
            ended_at = CASE WHEN ended_at IS NOT NULL THEN greatest(ended_at, $4) END
        WHERE id = $1";
    sqlx::query(SQL)
        .bind(operation)
        .bind(resolved)
        .bind(failed)
        .bind(at.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Records the sequences in REDRIVE of dead letters that an operation claimed.
pub(super) async fn sent(
    postgres: &Postgres,
    operation: OperationId,
    dead_letters: &[(DeadLetterVersion, u64)],
) -> Result<()> {
    const SQL: &str = "
        UPDATE herald.dead_letters d SET redrive_sequence = s.sequence
        FROM unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS s (id, round, sequence)
        WHERE d.id = s.id AND d.round = s.round AND d.redrive = $1";
    let ids: Vec<i64> = dead_letters
        .iter()
        .map(|(one, _)| one.id.0.cast_signed())
        .collect();
    let rounds: Vec<i64> = dead_letters.iter().map(|(one, _)| one.round.into()).collect();
    let sequences: Vec<i64> = dead_letters
        .iter()
        .map(|(_, sequence)| sequence.cast_signed())
        .collect();
    postgres
        .call("record the sequences of redriven messages", async || {
            let mut transaction = postgres.begin().await?;
            let _: Vec<(i64,)> = lock(&mut transaction, "id", &ids).await?;
            sqlx::query(SQL)
                .bind(operation.0.cast_signed())
                .bind(&ids)
                .bind(&rounds)
                .bind(&sequences)
                .persistent(false)
                .execute(&mut *transaction)
                .await?;
            Ok(transaction.commit().await?)
        })
        .await
}

/// Records that redrives succeeded, and returns their number.
pub(super) async fn resolve(
    postgres: &Postgres,
    dead_letters: &[DeadLetterVersion],
    at: Timestamp,
) -> Result<u64> {
    const UPDATE: &str = "UPDATE herald.dead_letters SET state = $2, updated_at = $3 WHERE id = ANY($1)";
    let versions: HashMap<i64, BTreeSet<i64>> = {
        let mut versions: HashMap<i64, BTreeSet<i64>> = HashMap::new();
        for one in dead_letters {
            let rounds = versions.entry(one.id.0.cast_signed()).or_default();
            rounds.insert(one.round.into());
        }
        versions
    };
    let ids: Vec<i64> = versions.keys().copied().collect();
    let redriving = number(&STATES, &DeadLetterState::Redriving);
    postgres
        .call("resolve dead letters", async || {
            let mut transaction = postgres.begin().await?;
            // The redrives are locked first. They can't change as long as the rounds are the same.
            let redrives: Vec<i64> = sqlx::query_scalar(
                "SELECT DISTINCT redrive FROM herald.dead_letters WHERE id = ANY($1) AND redrive IS NOT NULL",
            )
            .bind(&ids)
            .fetch_all(&mut *transaction)
            .await?;
            lock_operations(&mut transaction, &redrives).await?;
            let rows: Vec<(i64, i64, i16, Option<i64>)> =
                lock(&mut transaction, "id, round, state, redrive", &ids).await?;
            let mut resolved = Vec::new();
            let mut by_redrive: BTreeMap<i64, i64> = BTreeMap::new();
            for (id, round, state, redrive) in rows {
                let is_named = versions.get(&id).is_some_and(|rounds| rounds.contains(&round));
                if is_named && state == redriving {
                    resolved.push(id);
                    if let Some(redrive) = redrive {
                        *by_redrive.entry(redrive).or_default() += 1;
                    }
                }
            }
            sqlx::query(UPDATE)
                .bind(&resolved)
                .bind(number(&STATES, &DeadLetterState::Resolved))
                .bind(at.0)
                .execute(&mut *transaction)
                .await?;
            for (redrive, count) in by_redrive {
                count_outcomes(&mut transaction, redrive, count, 0, at).await?;
            }
            transaction.commit().await?;
            Ok(resolved.len() as u64)
        })
        .await
}
