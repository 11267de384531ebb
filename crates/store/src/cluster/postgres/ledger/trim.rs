//! Retention of the ledger: partitions are dropped when all of their posts are past it.
//!
//! Rows of posts past the retention that share a partition with newer ones stay until then, and are not read.

use herald_model::PostId;
use sqlx::AssertSqlSafe;

use super::partitions::{PARENTS, POSTS_PER_PARTITION};
use crate::{
    Result,
    cluster::postgres::{Attempt, Postgres, removal::remove},
};

/// Removes the rows of posts less than `first`. Returns the number of dropped tables.
pub(in crate::cluster::postgres) async fn partitions(postgres: &Postgres, first: PostId) -> Result<u64> {
    const RAISE: &str = "UPDATE herald.ledger_trim SET first_post = $1 WHERE first_post < $1";
    let first = first.0.cast_signed();
    let tables = postgres
        .call("raise the first post of the ledger", async || {
            sqlx::query(RAISE).bind(first).execute(postgres.pool()).await?;
            tables(postgres).await
        })
        .await?;
    let mut dropped = 0;
    for table in tables {
        if (table.number + 1) * POSTS_PER_PARTITION <= first {
            postgres
                .call("drop a partition of the ledger", async || {
                    table.drop(postgres).await
                })
                .await?;
            tracing::info!(table = table.name(), "dropped a partition of the ledger");
            dropped += 1;
        }
    }
    Ok(dropped)
}

/// Removes records of backfills whose posts are all less than `first`. Returns the number of removed rows.
pub(in crate::cluster::postgres) async fn backfills(postgres: &Postgres, first: PostId) -> Result<u64> {
    const BY_POST: &str = "
        DELETE FROM herald.backfill_posts WHERE (post, chunk) IN (
            SELECT post, chunk FROM herald.backfill_posts WHERE post < $1 ORDER BY post, chunk LIMIT $2
        )";
    const BACKFILLS: &str = "
        WITH old AS (
            SELECT id FROM herald.backfills WHERE last_post < $1 ORDER BY last_post LIMIT $2
        ), recipients AS (
            DELETE FROM herald.backfill_recipients WHERE backfill IN (SELECT id FROM old)
        )
        DELETE FROM herald.backfills WHERE id IN (SELECT id FROM old)";
    let first = first.0.cast_signed();
    Ok(remove(postgres, "backfills", BY_POST, first).await?
        + remove(postgres, "backfills", BACKFILLS, first).await?)
}

/// Removes the pinned versions of posts less than `first`. Returns the number of removed rows.
pub(in crate::cluster::postgres) async fn pins(postgres: &Postgres, first: PostId) -> Result<u64> {
    const SQL: &str = "
        DELETE FROM herald.pinned_posts WHERE (author, post) IN (
            SELECT author, post FROM herald.pinned_posts WHERE post < $1 ORDER BY post LIMIT $2
        )";
    remove(postgres, "pinned posts", SQL, first.0.cast_signed()).await
}

/// A table that is or was a partition of the ledger.
struct Table {
    parent: &'static str,
    number: i64,
    attachment: Attachment,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Attachment {
    Attached,
    /// A detachment was interrupted.
    Detaching,
    Detached,
}

/// Lists the tables by their names, so that one which was detached and not dropped is found.
async fn tables(postgres: &Postgres) -> Attempt<Vec<Table>> {
    const SQL: &str = "
        SELECT c.relname::text, i.inhdetachpending
        FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
        WHERE c.relnamespace = 'herald'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^ledger_[a-z]+_[0-9]+$'
        ORDER BY c.relname";
    let rows: Vec<(String, Option<bool>)> = sqlx::query_as(SQL).fetch_all(postgres.pool()).await?;
    let tables = rows.into_iter().filter_map(|(name, detaching)| {
        let (parent, number) = name.rsplit_once('_')?;
        Some(Table {
            parent: PARENTS
                .iter()
                .map(|known| known.name)
                .find(|known| *known == parent)?,
            number: number.parse().ok()?,
            attachment: match detaching {
                None => Attachment::Detached,
                Some(true) => Attachment::Detaching,
                Some(false) => Attachment::Attached,
            },
        })
    });
    Ok(tables.collect())
}

impl Table {
    fn name(&self) -> String {
        format!("{}_{}", self.parent, self.number)
    }

    /// Detaches and drops the table. Readers and writers of the other partitions don't wait for it: dropping an attached
    /// partition would lock all of them out.
    async fn drop(&self, postgres: &Postgres) -> Attempt<()> {
        let name = self.name();
        let how = match self.attachment {
            Attachment::Attached => Some("CONCURRENTLY"),
            Attachment::Detaching => Some("FINALIZE"),
            Attachment::Detached => None,
        };
        // Simple queries: this detachment can't run in a transaction.
        let mut connection = postgres.pool().acquire().await?;
        if let Some(how) = how {
            let detach = format!(
                "ALTER TABLE herald.{} DETACH PARTITION herald.{name} {how}",
                self.parent
            );
            let detached = sqlx::raw_sql(AssertSqlSafe(detach))
                .execute(&mut *connection)
                .await;
            match detached {
                Err(error) if is_done_elsewhere(&error) => return Ok(()),
                detached => detached?,
            };
        }
        sqlx::raw_sql(AssertSqlSafe(format!("DROP TABLE IF EXISTS herald.{name}")))
            .execute(&mut *connection)
            .await?;
        Ok(())
    }
}

/// Another process is trimming too: the partition is gone (undefined_table), or is being detached
/// (object_not_in_prerequisite_state).
fn is_done_elsewhere(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| matches!(error.code().as_deref(), Some("42P01" | "55000")))
}
