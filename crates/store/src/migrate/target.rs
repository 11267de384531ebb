//! The cluster engine into which data is moved: who moves what, and how far it is.

use std::collections::BTreeSet;

use herald_model::PostId;
use sqlx::{AssertSqlSafe, PgConnection};

use super::{
    part::{Batch, Part},
    parts::PARTS,
    source::Source,
    table,
};
use crate::{
    Error, ErrorKind, Result,
    cluster::{Attempt, Cluster, Postgres, postgres::ledger::partitions::Partitions},
    embedded::{database::map_err, devices, leases, mark::Mark},
};

/// Begins a transaction whose statements take as long as they take.
const BEGIN_LONG: &str = "BEGIN; SET LOCAL statement_timeout = 0";

/// State of a move in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MoveState {
    /// This move has begun.
    Begun,
    /// This move is finished.
    Finished,
}

/// How far a part is.
#[derive(Debug, Clone, Default)]
pub(super) struct PartState {
    pub(super) position: Option<Vec<u8>>,
    pub(super) rows: u64,
    pub(super) is_done: bool,
}

/// The open engine.
pub(super) struct Target {
    cluster: Cluster,
    postgres: Postgres,
    partitions: Partitions,
}

impl Target {
    pub(super) fn new(cluster: Cluster) -> Self {
        let postgres = cluster.postgres().clone();
        Self {
            partitions: Partitions::new(postgres.clone()),
            postgres,
            cluster,
        }
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Begins the move, or finds it. Refuses a database with other data.
    pub(super) async fn begin(&self, mark: &Mark) -> Result<MoveState> {
        const FIND: &str = "SELECT source, finished_at IS NOT NULL FROM herald.moved_store";
        const BEGIN: &str = "INSERT INTO herald.moved_store (source) VALUES ($1) ON CONFLICT DO NOTHING";
        self.postgres
            .call("begin the move", || async {
                let mut transaction = self.postgres.begin().await?;
                let found: Option<(String, bool)> =
                    sqlx::query_as(FIND).fetch_optional(&mut *transaction).await?;
                if let Some((source, is_finished)) = found {
                    if source == mark.id {
                        return Ok(if is_finished {
                            MoveState::Finished
                        } else {
                            MoveState::Begun
                        });
                    }
                    let state = if is_finished { "holds" } else { "holds a part of" };
                    return Err(refused(format!("it {state} the data of another embedded store")).into());
                }
                if mark.is_finished {
                    return Err(refused_finished().into());
                }
                self.check_empty(&mut transaction).await?;
                sqlx::query(BEGIN)
                    .bind(&mark.id)
                    .execute(&mut *transaction)
                    .await?;
                transaction.commit().await?;
                Ok(MoveState::Begun)
            })
            .await
    }

    async fn check_empty(&self, connection: &mut PgConnection) -> Attempt<()> {
        const RUNNING: &str = "
            SELECT count(*) FROM herald.leases WHERE ends_at > clock_timestamp() AND holder <> $1";
        for table in PARTS
            .iter()
            .flat_map(|part| part.tables)
            .filter(|table| !table.replaces)
        {
            let sql = format!("SELECT EXISTS (SELECT FROM herald.{})", table.name);
            let occupied: bool = sqlx::query_scalar(AssertSqlSafe(sql))
                .fetch_one(&mut *connection)
                .await?;
            if occupied {
                return Err(refused(format!("the table herald.{} has rows", table.name)).into());
            }
        }
        let running: i64 = sqlx::query_scalar(RUNNING)
            .bind(self.cluster.holder())
            .fetch_one(connection)
            .await?;
        if running > 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                "can't move into this database: Herald is running on it; stop its processes, and try again a minute later",
            )
            .into());
        }
        Ok(())
    }

    /// Reads how far a part is.
    pub(super) async fn part(&self, part: &Part) -> Result<PartState> {
        const SQL: &str = "SELECT position, rows, done FROM herald.moved_parts WHERE part = $1";
        let row: Option<(Option<Vec<u8>>, i64, bool)> = self
            .postgres
            .call("read how far the move is", || async {
                let row = sqlx::query_as(SQL)
                    .bind(part.name)
                    .fetch_optional(self.postgres.pool());
                Ok(row.await?)
            })
            .await?;
        Ok(row
            .map(|(position, rows, is_done)| PartState {
                position,
                rows: rows.cast_unsigned(),
                is_done,
            })
            .unwrap_or_default())
    }

    /// Writes a batch with the position after it.
    pub(super) async fn write(&self, part: &Part, batch: &Batch, state: &mut PartState) -> Result<()> {
        // The timelines first: the position tells that they are there.
        self.cluster.import_timelines(&batch.timelines).await?;
        self.partitions
            .ensure(posts_of(batch).into_iter().map(PostId))
            .await?;
        let next = PartState {
            position: Some(batch.position.clone()),
            rows: state.rows + batch.count,
            is_done: false,
        };
        let what = format!("write the {}", part.name);
        self.postgres
            .call(&what, || async {
                let mut transaction = self.postgres.begin().await?;
                // A repetition after a lost connection finds the position that it would write.
                if self.lock_part(&mut transaction, part).await? == next.position {
                    return Ok(());
                }
                for rows in &batch.rows {
                    rows.insert(&mut transaction).await?;
                }
                write_part(&mut transaction, part, &next).await?;
                Ok(transaction.commit().await?)
            })
            .await?;
        *state = next;
        Ok(())
    }

    async fn lock_part(&self, connection: &mut PgConnection, part: &Part) -> Attempt<Option<Vec<u8>>> {
        const SQL: &str = "
            INSERT INTO herald.moved_parts AS moved (part) VALUES ($1)
            ON CONFLICT (part) DO UPDATE SET rows = moved.rows
            RETURNING position";
        Ok(sqlx::query_scalar(SQL)
            .bind(part.name)
            .fetch_one(connection)
            .await?)
    }

    /// Records that a part is complete.
    pub(super) async fn end_part(&self, part: &Part, state: &mut PartState) -> Result<()> {
        state.is_done = true;
        self.postgres
            .call("record how far the move is", || async {
                let mut transaction = self.postgres.begin().await?;
                self.lock_part(&mut transaction, part).await?;
                write_part(&mut transaction, part, state).await?;
                Ok(transaction.commit().await?)
            })
            .await
    }

    /// Sets the counters of ids and tokens, so that none is used again.
    pub(super) async fn set_counters(&self, source: &Source) -> Result<()> {
        const SQL: &str = "
            SELECT setval('herald.device_ids', greatest($1, 1), $1 > 0),
                setval('herald.lease_tokens', greatest($2, nextval('herald.lease_tokens'))),
                setval(pg_get_serial_sequence('herald.dead_letter_operations', 'id'),
                    greatest(max_operation, 1), max_operation > 0),
                setval(pg_get_serial_sequence('herald.backfills', 'id'), greatest(max_backfill, 1), max_backfill > 0),
                setval(pg_get_serial_sequence('herald.erasures', 'id'), greatest(max_erasure, 1), max_erasure > 0)
            FROM (SELECT coalesce(max(id), 0) AS max_operation FROM herald.dead_letter_operations) o,
                (SELECT coalesce(max(id), 0) AS max_backfill FROM herald.backfills WHERE id > 0) b,
                (SELECT coalesce(max(id), 0) AS max_erasure FROM herald.erasures) e";
        const USERS: &str = "
            UPDATE herald.counters SET last = (SELECT coalesce(max(key), 0) FROM herald.users) WHERE name = 'users'";
        const OLDEST: &str = "UPDATE herald.timelines_retention SET oldest_kept = $1";
        let stored = |keyspace: &fjall::Keyspace, key: &[u8], what: &str| -> Result<i64> {
            let Some(number) = keyspace.get(key).map_err(map_err)? else {
                return Ok(0);
            };
            let number = <[u8; 8]>::try_from(&number[..])
                .map_err(|_| super::source::corrupt(what, "it can't be decoded"))?;
            Ok(i64::from_be_bytes(number))
        };
        let devices = stored(
            &source.device_counter,
            devices::COUNTER,
            "the counter of device ids",
        )?;
        let tokens = stored(
            &source.leases,
            leases::NEXT_TOKEN.as_bytes(),
            "the next token of the leases",
        )?;
        let oldest = source.oldest_shown().cast_signed();
        self.postgres
            .call("set the counters of ids", || async {
                let mut transaction = self.postgres.begin().await?;
                sqlx::query(SQL)
                    .bind(devices)
                    .bind(tokens)
                    .execute(&mut *transaction)
                    .await?;
                sqlx::query(USERS).execute(&mut *transaction).await?;
                sqlx::query(OLDEST)
                    .bind(oldest)
                    .execute(&mut *transaction)
                    .await?;
                Ok(transaction.commit().await?)
            })
            .await
    }

    /// The first row of a batch that the tables don't have, for a message.
    pub(super) async fn first_difference(&self, part: &Part, batch: &Batch) -> Result<Option<String>> {
        let what = format!("compare the {}", part.name);
        self.postgres
            .call(&what, || async {
                let mut transaction = self.postgres.begin_lookups().await?;
                for rows in &batch.rows {
                    if let Some(difference) = rows.first_difference(&mut transaction).await? {
                        return Ok(Some(difference));
                    }
                }
                transaction.commit().await?;
                Ok(None)
            })
            .await
    }

    /// Number of rows of a table.
    pub(super) async fn count(&self, table: &table::Table) -> Result<u64> {
        let counted = async {
            let mut transaction = self.postgres.pool().begin_with(BEGIN_LONG).await?;
            let rows = table::count(&mut transaction, table).await?;
            transaction.commit().await?;
            Attempt::Ok(rows)
        };
        counted
            .await
            .map_err(|failure| failure.into_error("count the moved rows"))
    }

    /// Gathers statistics, without which the first statements would read whole tables.
    pub(super) async fn analyze(&self) -> Result<()> {
        let analyzed = async {
            let mut transaction = self.postgres.pool().begin_with(BEGIN_LONG).await?;
            for table in PARTS.iter().flat_map(|part| part.tables) {
                sqlx::raw_sql(AssertSqlSafe(format!("ANALYZE herald.{}", table.name)))
                    .execute(&mut *transaction)
                    .await?;
            }
            transaction.commit().await?;
            Attempt::Ok(())
        };
        analyzed
            .await
            .map_err(|failure| failure.into_error("gather statistics of the moved rows"))
    }

    /// Finishes the move: Herald starts on this database from now on.
    pub(super) async fn finish(&self) -> Result<()> {
        const SQL: &str = "UPDATE herald.moved_store SET finished_at = now() WHERE finished_at IS NULL";
        self.cluster.end_import_of_timelines().await?;
        self.postgres
            .call("finish the move", || async {
                sqlx::query(SQL).execute(self.postgres.pool()).await?;
                Ok(())
            })
            .await
    }

    pub(super) async fn close(&self) {
        self.cluster.close().await;
    }
}

async fn write_part(connection: &mut PgConnection, part: &Part, state: &PartState) -> Attempt<()> {
    const SQL: &str = "UPDATE herald.moved_parts SET position = $2, rows = $3, done = $4 WHERE part = $1";
    sqlx::query(SQL)
        .bind(part.name)
        .bind(&state.position)
        .bind(state.rows.cast_signed())
        .bind(state.is_done)
        .execute(connection)
        .await?;
    Ok(())
}

/// The posts of the rows of partitioned tables.
fn posts_of(batch: &Batch) -> BTreeSet<u64> {
    let partitioned = |rows: &&table::Rows| rows.table.name.starts_with("ledger_");
    let rows = batch.rows.iter().filter(partitioned);
    rows.flat_map(table::Rows::first_numbers).collect()
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!(
            "can't move into this database: {why}; use an empty database, or empty this one with `DROP SCHEMA herald CASCADE`"
        ),
    )
}

fn refused_finished() -> Error {
    Error::new(
        ErrorKind::Invalid,
        "the data of this embedded store was moved to another database: use that one; to move it again, as it was then, \
         remove the file `moved` of the data directory",
    )
}
