//! Operations on dead letters, and what they selected.

use herald_model::time::Timestamp;
use sqlx::{PgConnection, PgExecutor};

use super::row::{OperationRow, no_operation, number, operation_columns, text};
use crate::{
    DeadLetterVersion, NewOperation, Operation, OperationId, OperationKind, OperationState, Result,
    cluster::postgres::{Attempt, Postgres, keys},
    dead_letters::too_many_running,
    embedded::dead_letters::{
        commit::SELECTED_PER_ROW,
        row::{OPERATION_KINDS, OPERATION_STATES, encode_selected},
    },
};

/// Records an operation and what it selected, if fewer than `running_max` are running.
pub(super) async fn begin(
    postgres: &Postgres,
    operation: &NewOperation,
    dead_letters: &[DeadLetterVersion],
    running_max: Option<u64>,
) -> Result<Operation> {
    const OPERATION: &str = concat!(
        "INSERT INTO herald.dead_letter_operations (
            at, excluded, rate_max, failures_max, push_ttl_us, target, ended_at, selected, kind, state, actor, selection
        ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
        RETURNING ",
        operation_columns!()
    );
    const SELECTED: &str = "
        INSERT INTO herald.dead_letter_selected (operation, part, dead_letters)
        SELECT $1, part, dead_letters FROM unnest($2::bigint[], $3::bytea[]) AS s (part, dead_letters)";
    let state = if dead_letters.is_empty() {
        OperationState::Done
    } else {
        OperationState::Running
    };
    let parts: Vec<Vec<u8>> = dead_letters
        .chunks(SELECTED_PER_ROW as usize)
        .map(encode_selected)
        .collect();
    let numbers: Vec<i64> = (0..).take(parts.len()).collect();
    let push_ttl_us = operation
        .push_ttl
        .map(|ttl| i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX));
    let row: OperationRow = postgres
        .call_once("begin an operation on dead letters", async || {
            let mut transaction = postgres.begin().await?;
            if let Some(running_max) = running_max {
                check_running(&mut transaction, running_max).await?;
            }
            let row: OperationRow = sqlx::query_as(OPERATION)
                .bind(operation.at.0)
                .bind(operation.excluded.cast_signed())
                .bind(i64::from(operation.rate_max))
                .bind(i64::from(operation.failures_max))
                .bind(push_ttl_us)
                .bind(operation.target.map(|target| target.0.cast_signed()))
                .bind(dead_letters.is_empty().then_some(operation.at.0))
                .bind(dead_letters.len().cast_signed() as i64)
                .bind(number(&OPERATION_KINDS, &operation.kind))
                .bind(number(&OPERATION_STATES, &state))
                .bind(text(&operation.actor))
                .bind(&operation.selection[..])
                .fetch_one(&mut *transaction)
                .await?;
            sqlx::query(SELECTED)
                .bind(row.id())
                .bind(&numbers)
                .bind(&parts)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
            Ok(row)
        })
        .await?;
    row.decode()
}

/// Refuses an operation while as many are running. Until the end of the transaction no other one passes this check.
async fn check_running(connection: &mut PgConnection, running_max: u64) -> Attempt<()> {
    const LOCK: &str = "SELECT FROM herald.store FOR NO KEY UPDATE";
    const RUNNING: &str = "SELECT count(*) FROM herald.dead_letter_operations WHERE state = 0 AND kind <> $1";
    sqlx::query(LOCK).execute(&mut *connection).await?;
    // A statement of its own: its snapshot has what the previous holder of the lock has committed.
    let running: i64 = sqlx::query_scalar(RUNNING)
        .bind(number(&OPERATION_KINDS, &OperationKind::Cancel))
        .fetch_one(connection)
        .await?;
    let running = running.cast_unsigned();
    if running >= running_max {
        return Err(too_many_running(running, running_max).into());
    }
    Ok(())
}

/// Ends a running operation. One that has ended is returned unchanged.
pub(super) async fn finish(
    postgres: &Postgres,
    id: OperationId,
    state: OperationState,
    reason: &str,
    at: Timestamp,
) -> Result<Operation> {
    postgres
        .call("end an operation on dead letters", async || {
            let mut transaction = postgres.begin().await?;
            if let Some(ended) = end(&mut transaction, id, state, reason, at).await? {
                transaction.commit().await?;
                return Ok(ended);
            }
            let unchanged = read(&mut *transaction, id).await?;
            Ok(unchanged.ok_or_else(|| no_operation(id))?)
        })
        .await
}

/// Ends an operation if it is running.
pub(super) async fn end(
    connection: &mut PgConnection,
    id: OperationId,
    state: OperationState,
    reason: &str,
    at: Timestamp,
) -> Attempt<Option<Operation>> {
    const END: &str = concat!(
        "UPDATE herald.dead_letter_operations SET state = $2, reason = $3, ended_at = $4
        WHERE id = $1 AND state = 0
        RETURNING ",
        operation_columns!()
    );
    let ended: Option<OperationRow> = sqlx::query_as(END)
        .bind(id.0.cast_signed())
        .bind(number(&OPERATION_STATES, &state))
        .bind(text(reason))
        .bind(at.0)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(ended) = ended else { return Ok(None) };
    sqlx::query("DELETE FROM herald.dead_letter_selected WHERE operation = $1")
        .bind(id.0.cast_signed())
        .execute(connection)
        .await?;
    Ok(Some(ended.decode()?))
}

/// Reads an operation.
pub(super) async fn get(postgres: &Postgres, id: OperationId) -> Result<Option<Operation>> {
    postgres
        .call("read an operation on dead letters", async || {
            read(postgres.pool(), id).await
        })
        .await
}

async fn read(executor: impl PgExecutor<'_>, id: OperationId) -> Attempt<Option<Operation>> {
    const SQL: &str = concat!(
        "SELECT ",
        operation_columns!(),
        " FROM herald.dead_letter_operations WHERE id = $1"
    );
    let row: Option<OperationRow> = sqlx::query_as(SQL)
        .bind(id.0.cast_signed())
        .fetch_optional(executor)
        .await?;
    Ok(row.map(OperationRow::decode).transpose()?)
}

/// Lists operations, newest first.
pub(super) async fn list(
    postgres: &Postgres,
    before: Option<OperationId>,
    limit: usize,
) -> Result<Vec<Operation>> {
    const SQL: &str = concat!(
        "SELECT ",
        operation_columns!(),
        " FROM herald.dead_letter_operations WHERE id < $1 ORDER BY id DESC LIMIT $2"
    );
    let before = before.map_or(i64::MAX, |id| keys::bigint(id.0));
    let rows: Vec<OperationRow> = postgres
        .call("list the operations on dead letters", async || {
            Ok(sqlx::query_as(SQL)
                .bind(before)
                .bind(keys::limit(limit))
                .fetch_all(postgres.pool())
                .await?)
        })
        .await?;
    rows.into_iter().map(OperationRow::decode).collect()
}

/// Lists the running operations. A cancellation changes nothing by itself and is never running.
pub(super) async fn running(postgres: &Postgres) -> Result<Vec<Operation>> {
    const SQL: &str = concat!(
        "SELECT ",
        operation_columns!(),
        " FROM herald.dead_letter_operations WHERE state = 0 AND kind <> $1 ORDER BY id"
    );
    let rows: Vec<OperationRow> = postgres
        .call("list the running operations on dead letters", async || {
            Ok(sqlx::query_as(SQL)
                .bind(number(&OPERATION_KINDS, &OperationKind::Cancel))
                .fetch_all(postgres.pool())
                .await?)
        })
        .await?;
    rows.into_iter().map(OperationRow::decode).collect()
}
