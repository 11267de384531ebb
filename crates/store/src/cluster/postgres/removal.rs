//! Removal of rows that are past their retention.
//!
//! Rows are removed in statements of a bounded number of rows, so that none locks many rows or runs long.
//!
//! A statement selects its rows before it locks them. Where another transaction can renew a row meanwhile, the statement
//! repeats the condition outside of the selection: PostgreSQL checks only that again after it waited for the row.

use super::Postgres;
use crate::Result;

/// Maximum number of rows that one statement removes.
const ROWS_MAX: i64 = 5_000;

/// Removes rows past a limit, statement by statement: `$1` is the limit, `$2` the maximum number of rows.
pub(super) async fn remove(
    postgres: &Postgres,
    what: &str,
    statement: &'static str,
    limit: i64,
) -> Result<u64> {
    remove_bounded(postgres, what, || {
        sqlx::query(statement).bind(limit).bind(ROWS_MAX)
    })
    .await
}

/// Removes rows past a limit except those in a state, `$3`.
pub(super) async fn remove_except(
    postgres: &Postgres,
    what: &str,
    statement: &'static str,
    limit: i64,
    state: i16,
) -> Result<u64> {
    remove_bounded(postgres, what, || {
        sqlx::query(statement).bind(limit).bind(ROWS_MAX).bind(state)
    })
    .await
}

type Statement = sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>;

async fn remove_bounded(
    postgres: &Postgres,
    what: &str,
    statement: impl Fn() -> Statement + Send + Sync,
) -> Result<u64> {
    let what = format!("remove {what} past their retention");
    let mut removed = 0;
    loop {
        let some = postgres
            .call(&what, async || {
                Ok(statement().execute(postgres.pool()).await?.rows_affected())
            })
            .await?;
        removed += some;
        // A last statement that finds nothing would read the removed rows again.
        if some < ROWS_MAX.cast_unsigned() {
            return Ok(removed);
        }
    }
}
