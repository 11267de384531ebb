//! A step of an operation: the change of its next dead letters.

use std::collections::HashMap;

use herald_model::time::Timestamp;
use sqlx::PgConnection;

use super::{
    operations,
    row::{COLUMNS, DeadLetterRow, OperationRow, no_operation, number, operation_columns},
    write::lock,
};
use crate::{
    DeadLetter, DeadLetterId, DeadLetterState, DeadLetterVersion, Fence, OPERATIONS_PER_DEAD_LETTER,
    Operation, OperationId, OperationState, Result, Step,
    cluster::postgres::{Attempt, Postgres, leases},
    embedded::dead_letters::{
        commit::SELECTED_PER_ROW,
        row::{STATES, decode_selected, malformed},
    },
};

/// What a step does with dead letters that did not change since they were selected.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change<'a> {
    /// They are redriven, by the holder of a lease.
    Claim { redrive_after: u64, fence: &'a Fence },
    /// They are discarded.
    Discard,
}

/// Runs a step. It is not repeated when the connection is lost: the next step would follow the lost one.
pub(super) async fn run(
    postgres: &Postgres,
    operation: OperationId,
    limit: usize,
    at: Timestamp,
    change: Change<'_>,
) -> Result<Step> {
    postgres
        .call_once("process dead letters", async || {
            let mut transaction = postgres.begin().await?;
            if let Change::Claim { fence, .. } = change {
                leases::hold(&mut transaction, fence).await?;
            }
            let step = take(&mut transaction, operation, limit, at, change).await?;
            transaction.commit().await?;
            Ok(step)
        })
        .await
}

async fn take(
    connection: &mut PgConnection,
    id: OperationId,
    limit: usize,
    at: Timestamp,
    change: Change<'_>,
) -> Attempt<Step> {
    const OPERATION: &str = concat!(
        "SELECT ",
        operation_columns!(),
        " FROM herald.dead_letter_operations WHERE id = $1 FOR UPDATE"
    );
    let row: Option<OperationRow> = sqlx::query_as(OPERATION)
        .bind(id.0.cast_signed())
        .fetch_optional(&mut *connection)
        .await?;
    let mut operation = row.ok_or_else(|| no_operation(id))?.decode()?;
    let left = match operation.state {
        OperationState::Running => operation.selected.saturating_sub(operation.reached),
        _ => 0,
    };
    let selected = next_selected(connection, &operation, left.min(limit as u64)).await?;
    let mut dead_letters = eligible(connection, &selected).await?;
    operation.reached += selected.len() as u64;
    operation.skipped += (selected.len() - dead_letters.len()) as u64;
    if !dead_letters.is_empty() {
        apply(connection, &mut dead_letters, &mut operation, at, change).await?;
    }
    if !selected.is_empty() {
        write_progress(connection, &operation).await?;
    }
    if matches!(change, Change::Discard) && operation.reached >= operation.selected {
        let done = operations::end(connection, id, OperationState::Done, "", at).await?;
        operation = done.unwrap_or(operation);
    }
    Ok(Step {
        dead_letters,
        operation,
    })
}

/// The next `count` dead letters that an operation selected.
async fn next_selected(
    connection: &mut PgConnection,
    operation: &Operation,
    count: u64,
) -> Attempt<Vec<DeadLetterVersion>> {
    const SQL: &str = "
        SELECT dead_letters FROM herald.dead_letter_selected
        WHERE operation = $1 AND part BETWEEN $2 AND $3
        ORDER BY part";
    if count == 0 {
        return Ok(Vec::new());
    }
    let first = operation.reached / SELECTED_PER_ROW;
    let parts: Vec<Vec<u8>> = sqlx::query_scalar(SQL)
        .bind(operation.id.0.cast_signed())
        .bind(first.cast_signed())
        .bind(((operation.reached + count - 1) / SELECTED_PER_ROW).cast_signed())
        .fetch_all(connection)
        .await?;
    let mut selected = Vec::new();
    for part in parts {
        selected.extend(decode_selected(&part)?);
    }
    let skip = (operation.reached % SELECTED_PER_ROW) as usize;
    let next: Vec<_> = selected.into_iter().skip(skip).take(count as usize).collect();
    if next.len() as u64 == count {
        Ok(next)
    } else {
        Err(malformed().into())
    }
}

/// Locks dead letters and returns those that are open in the selected round, in the order of the selection. One whose
/// row can't be decoded stays as it is.
async fn eligible(connection: &mut PgConnection, selected: &[DeadLetterVersion]) -> Attempt<Vec<DeadLetter>> {
    let ids: Vec<i64> = selected
        .iter()
        .map(|version| version.id.0.cast_signed())
        .collect();
    let rows: Vec<DeadLetterRow> = lock(connection, COLUMNS, &ids).await?;
    let mut found: HashMap<DeadLetterId, DeadLetter> = rows
        .into_iter()
        .filter_map(DeadLetterRow::decode_or_skip)
        .map(|dead_letter| (dead_letter.id, dead_letter))
        .collect();
    let mut eligible = Vec::new();
    for version in selected {
        let is_open = |dead_letter: &DeadLetter| {
            dead_letter.state == DeadLetterState::Open && dead_letter.round == version.round
        };
        if found.get(&version.id).is_some_and(is_open) {
            eligible.extend(found.remove(&version.id));
        }
    }
    Ok(eligible)
}

/// Changes locked dead letters, and what the operation counts of them.
async fn apply(
    connection: &mut PgConnection,
    dead_letters: &mut [DeadLetter],
    operation: &mut Operation,
    at: Timestamp,
    change: Change<'_>,
) -> Attempt<()> {
    const SQL: &str = "
        UPDATE herald.dead_letters SET
            state = $2,
            updated_at = $3,
            operations = (operations || $4::bigint)[greatest(1, cardinality(operations) + 2 - $5):],
            round = round + CASE WHEN $6 THEN 1 ELSE 0 END,
            redrive = CASE WHEN $6 THEN $4 ELSE redrive END,
            redrive_sequence = CASE WHEN $6 THEN 0 ELSE redrive_sequence END,
            pushes_expire_at = coalesce($7, pushes_expire_at)
        WHERE id = ANY($1)";
    let (state, is_claim) = match change {
        Change::Claim { .. } => (DeadLetterState::Redriving, true),
        Change::Discard => (DeadLetterState::Discarded, false),
    };
    let pushes_expire_at = operation
        .what
        .push_ttl
        .filter(|_| is_claim)
        .map(|ttl| at.plus(ttl));
    let ids: Vec<i64> = dead_letters
        .iter()
        .map(|dead_letter| dead_letter.id.0.cast_signed())
        .collect();
    sqlx::query(SQL)
        .bind(ids)
        .bind(number(&STATES, &state))
        .bind(at.0)
        .bind(operation.id.0.cast_signed())
        .bind(OPERATIONS_PER_DEAD_LETTER.cast_signed() as i32)
        .bind(is_claim)
        .bind(pushes_expire_at.map(|at| at.0))
        .execute(connection)
        .await?;
    for dead_letter in dead_letters.iter_mut() {
        dead_letter.state = state;
        dead_letter.updated_at = at;
        dead_letter.operations.push(operation.id);
        let surplus = dead_letter
            .operations
            .len()
            .saturating_sub(OPERATIONS_PER_DEAD_LETTER);
        dead_letter.operations.drain(..surplus);
        if is_claim {
            dead_letter.round += 1;
            dead_letter.redrive = Some(operation.id);
            dead_letter.redrive_sequence = 0;
            if dead_letter.pushes_expire_at.is_some() && pushes_expire_at.is_some() {
                dead_letter.pushes_expire_at = pushes_expire_at;
            }
        }
    }
    if let Change::Claim { redrive_after, .. } = change {
        operation.redrive_after = redrive_after;
        let claimed = dead_letters.iter();
        let expired = claimed.filter(|dead_letter| operation.what.finds_expired(dead_letter, at));
        operation.expired += expired.count() as u64;
    }
    Ok(())
}

async fn write_progress(connection: &mut PgConnection, operation: &Operation) -> Attempt<()> {
    const SQL: &str = "
        UPDATE herald.dead_letter_operations SET reached = $2, skipped = $3, expired = $4, redrive_after = $5
        WHERE id = $1";
    sqlx::query(SQL)
        .bind(operation.id.0.cast_signed())
        .bind(operation.reached.cast_signed())
        .bind(operation.skipped.cast_signed())
        .bind(operation.expired.cast_signed())
        .bind(operation.redrive_after.cast_signed())
        .execute(connection)
        .await?;
    Ok(())
}
