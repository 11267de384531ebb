//! Leases, by the clock of PostgreSQL.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::PgConnection;

use super::{Attempt, Postgres};
use crate::{Error, ErrorKind, Fence, Result};

/// The cluster engine's [`Leases`](crate::Leases).
pub(crate) struct PostgresLeases {
    postgres: Postgres,
}

impl PostgresLeases {
    pub(crate) fn new(postgres: Postgres) -> Self {
        Self { postgres }
    }
}

/// A duration in microseconds, for `$n * interval '1 microsecond'`.
pub(super) fn microseconds(duration: Duration) -> i64 {
    // A century: more would leave the range of timestamps.
    const MAX: i64 = 100 * 365 * 86_400 * 1_000_000;
    i64::try_from(duration.as_micros()).map_or(MAX, |us| us.min(MAX))
}

/// Checks that a lease has not ended, and keeps others from taking it until the transaction ends.
///
/// [`ErrorKind::Fenced`] if it has ended or has another holder.
pub(super) async fn hold(connection: &mut PgConnection, fence: &Fence) -> Attempt<()> {
    const SQL: &str = "
        SELECT true FROM herald.leases
        WHERE name = $1 AND token = $2 AND ends_at > clock_timestamp()
        FOR SHARE";
    let held: Option<bool> = sqlx::query_scalar(SQL)
        .bind(&fence.name)
        .bind(fence.token.cast_signed())
        .fetch_optional(connection)
        .await?;
    match held {
        Some(_) => Ok(()),
        None => Err(fenced(fence).into()),
    }
}

fn fenced(fence: &Fence) -> Error {
    Error::new(
        ErrorKind::Fenced,
        format!("holding {} of the lease {} has ended", fence.token, fence.name),
    )
}

#[async_trait]
impl crate::Leases for PostgresLeases {
    async fn acquire(&self, name: &str, holder: &str, duration: Duration) -> Result<Option<Fence>> {
        // The token is drawn after the row is locked, so a later holding has a greater one.
        const SQL: &str = "
            INSERT INTO herald.leases AS l (name, holder, token, ends_at)
            VALUES ($1, $2, nextval('herald.lease_tokens'), clock_timestamp() + $3 * interval '1 microsecond')
            ON CONFLICT (name) DO UPDATE SET
                holder = $2,
                token = nextval('herald.lease_tokens'),
                ends_at = clock_timestamp() + $3 * interval '1 microsecond',
                changed_at = clock_timestamp()
            WHERE l.holder = $2 OR l.ends_at IS NULL OR l.ends_at <= clock_timestamp()
            RETURNING token";
        let token: Option<i64> = self
            .postgres
            .call("take a lease", async || {
                Ok(sqlx::query_scalar(SQL)
                    .bind(name)
                    .bind(holder)
                    .bind(microseconds(duration))
                    .fetch_optional(self.postgres.pool())
                    .await?)
            })
            .await?;
        Ok(token.map(|token| Fence {
            name: name.into(),
            token: token.cast_unsigned(),
        }))
    }

    async fn renew(&self, fence: &Fence, duration: Duration) -> Result<()> {
        const SQL: &str = "
            UPDATE herald.leases
            SET ends_at = clock_timestamp() + $3 * interval '1 microsecond', changed_at = clock_timestamp()
            WHERE name = $1 AND token = $2 AND ends_at IS NOT NULL";
        let renewed = self
            .postgres
            .call("renew a lease", async || {
                Ok(sqlx::query(SQL)
                    .bind(&fence.name)
                    .bind(fence.token.cast_signed())
                    .bind(microseconds(duration))
                    .execute(self.postgres.pool())
                    .await?)
            })
            .await?;
        match renewed.rows_affected() {
            0 => Err(fenced(fence)),
            _ => Ok(()),
        }
    }

    async fn release(&self, fence: &Fence) -> Result<()> {
        const SQL: &str = "
            UPDATE herald.leases SET ends_at = NULL, changed_at = clock_timestamp()
            WHERE name = $1 AND token = $2";
        self.postgres
            .call("release a lease", async || {
                sqlx::query(SQL)
                    .bind(&fence.name)
                    .bind(fence.token.cast_signed())
                    .execute(self.postgres.pool())
                    .await?;
                Ok(())
            })
            .await
    }
}
