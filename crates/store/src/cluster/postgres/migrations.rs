//! Migrations of the schema: numbered files of SQL, each applied once, in one transaction.
//!
//! A migration runs while older processes still use the tables: it adds tables, columns with defaults and indexes, and
//! changes nothing that the version before reads. Statements name the columns that they read: PostgreSQL refuses a
//! prepared `SELECT *` once its table has another column. A lock that it does not get within [`TABLE_LOCK_TIMEOUT_MS`]
//! is given up and tried again, because statements that come later would wait behind it.

use std::{collections::BTreeMap, time::Duration};

use herald_model::time::Timestamp;
use sqlx::PgConnection;

use super::{Attempt, Failure, Postgres};
use crate::{Error, ErrorKind, Result};

/// All migrations, ascending. A released one never changes.
const MIGRATIONS: &[Migration] = &[
    Migration {
        name: "0001_records",
        sql: include_str!("../../../migrations/0001_records.sql"),
    },
    Migration {
        name: "0002_deliveries",
        sql: include_str!("../../../migrations/0002_deliveries.sql"),
    },
    Migration {
        name: "0003_timelines",
        sql: include_str!("../../../migrations/0003_timelines.sql"),
    },
    Migration {
        name: "0004_moved_store",
        sql: include_str!("../../../migrations/0004_moved_store.sql"),
    },
    Migration {
        name: "0005_stream_marks",
        sql: include_str!("../../../migrations/0005_stream_marks.sql"),
    },
    Migration {
        name: "0006_retention_clock",
        sql: include_str!("../../../migrations/0006_retention_clock.sql"),
    },
    Migration {
        name: "0007_api_keys",
        sql: include_str!("../../../migrations/0007_api_keys.sql"),
    },
    Migration {
        name: "0008_erasures",
        sql: include_str!("../../../migrations/0008_erasures.sql"),
    },
];

/// Key of the advisory lock that a migrating process holds: "herald" and a number.
pub(super) const LOCK_KEY: i64 = 0x6865_7261_6c64_0001;

/// Time-out of waiting for another process that migrates.
const MIGRATION_LOCK_TIMEOUT_MS: u32 = 120_000;

/// Time-out of a migration's wait for the lock of a table.
const TABLE_LOCK_TIMEOUT_MS: u32 = 3_000;

/// Attempts at a migration that did not get a lock.
const ATTEMPTS_MAX: u32 = 20;

/// The oldest version of PostgreSQL that Herald is tested with, as `server_version_num`.
const SERVER_VERSION_MIN: i32 = 140_000;

/// A file of SQL.
struct Migration {
    /// The file's name without extension: four digits and a word.
    name: &'static str,
    sql: &'static str,
}

/// What a migration of the schema did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Names of the migrations that were applied now, ascending.
    pub applied: Vec<&'static str>,
    /// Version of the schema: the number of its newest migration.
    pub version: i32,
}

impl Migration {
    fn version(&self) -> i32 {
        self.name
            .split('_')
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or_default()
    }
}

impl Postgres {
    /// Checks the server and applies the migrations that the schema lacks.
    pub(crate) async fn migrate(&self) -> Result<Migrated> {
        self.check_server().await?;
        let mut applied = Vec::new();
        let mut attempts = 0;
        loop {
            match self.apply_next().await {
                Ok(Some(name)) => {
                    tracing::info!(migration = name, "migrated the schema of the store");
                    applied.push(name);
                    attempts = 0;
                }
                Ok(None) => break,
                Err(Failure::Sql(error)) if is_lock_timeout(&error) && attempts < ATTEMPTS_MAX => {
                    attempts += 1;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(failure) => return Err(failure.into_error("migrate the schema of the store")),
            }
        }
        Ok(Migrated {
            applied,
            version: MIGRATIONS.last().map_or(0, Migration::version),
        })
    }

    /// Refuses a schema that lacks a migration, and changes nothing.
    pub(crate) async fn check_migrated(&self) -> Result<()> {
        let lacking = self.call("read the version of the schema", async || {
            Ok(next(&applied(&mut *self.pool().acquire().await?).await?)?)
        });
        match lacking.await? {
            None => Ok(()),
            Some(migration) => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "the schema of the store lacks the migration {}: run `herald store migrate`, or use the version of \
                     Herald that runs",
                    migration.name
                ),
            )),
        }
    }

    /// The clock of the server.
    pub(crate) async fn clock(&self) -> Result<Timestamp> {
        const SQL: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        let time: i64 = self
            .call("read the clock", async || {
                Ok(sqlx::query_scalar(SQL).fetch_one(self.pool()).await?)
            })
            .await?;
        Ok(Timestamp(time))
    }

    /// Refuses a server that Herald can't use.
    async fn check_server(&self) -> Result<()> {
        const SQL: &str = "
            SELECT current_setting('server_version_num')::int, current_setting('server_version'),
                current_setting('server_encoding'), pg_is_in_recovery(),
                current_setting('transaction_read_only') = 'on',
                current_setting('fsync') = 'off' OR current_setting('synchronous_commit') = 'off'";
        type Server = (i32, String, String, bool, bool, bool);
        let (version, version_name, encoding, standby, read_only, unsafe_commits): Server = self
            .call("check the server", async || {
                Ok(sqlx::query_as(SQL).fetch_one(self.pool()).await?)
            })
            .await?;
        if version < SERVER_VERSION_MIN {
            return Err(refused(format!(
                "the server is PostgreSQL {version_name}, and Herald needs version 14 or newer: upgrade the server"
            )));
        }
        if encoding != "UTF8" {
            return Err(refused(format!(
                "the database has the encoding {encoding}, and Herald needs UTF8: create one with `CREATE DATABASE … \
                 ENCODING 'UTF8' TEMPLATE template0`"
            )));
        }
        if standby || read_only {
            let message = if standby {
                "the server is a standby: use the URL of the primary"
            } else {
                "the database is read-only (default_transaction_read_only): make it writable"
            };
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        if unsafe_commits {
            tracing::warn!(
                "the server has fsync or synchronous_commit off: acknowledged posts can be lost when it crashes"
            );
        }
        Ok(())
    }

    /// Applies the first migration that the schema lacks and returns its name; `None` if it has all.
    async fn apply_next(&self) -> Attempt<Option<&'static str>> {
        if next(&applied(&mut *self.pool().acquire().await?).await?)?.is_none() {
            return Ok(None);
        }
        let mut transaction = self.begin().await?;
        let set = |lock_timeout_ms: u32| {
            sqlx::AssertSqlSafe(format!(
                "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {lock_timeout_ms}"
            ))
        };
        sqlx::raw_sql(set(MIGRATION_LOCK_TIMEOUT_MS))
            .execute(&mut *transaction)
            .await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(LOCK_KEY)
            .execute(&mut *transaction)
            .await?;
        sqlx::raw_sql(set(TABLE_LOCK_TIMEOUT_MS))
            .execute(&mut *transaction)
            .await?;
        // Another process may have applied it meanwhile.
        let Some(migration) = next(&applied(&mut transaction).await?)? else {
            return Ok(None);
        };
        sqlx::raw_sql(
            "CREATE SCHEMA IF NOT EXISTS herald;
            CREATE TABLE IF NOT EXISTS herald.migrations (
                version int PRIMARY KEY,
                name text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now()
            )",
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::raw_sql(migration.sql).execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO herald.migrations (version, name) VALUES ($1, $2)")
            .bind(migration.version())
            .bind(migration.name)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Some(migration.name))
    }
}

/// The applied migrations, by version. Refuses a schema that is not Herald's.
async fn applied(connection: &mut PgConnection) -> Attempt<BTreeMap<i32, String>> {
    const SCHEMA: &str = "
        SELECT to_regclass('herald.migrations') IS NOT NULL,
            EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace('herald')), current_database()";
    let (migrated, occupied, database): (bool, bool, String) =
        sqlx::query_as(SCHEMA).fetch_one(&mut *connection).await?;
    if migrated {
        let rows: Vec<(i32, String)> = sqlx::query_as("SELECT version, name FROM herald.migrations")
            .fetch_all(connection)
            .await?;
        return Ok(rows.into_iter().collect());
    }
    if occupied {
        return Err(refused(format!(
            "the schema herald of the database {database} has tables that are not Herald's: use another database, or \
             rename that schema"
        ))
        .into());
    }
    Ok(BTreeMap::new())
}

/// The first migration that is not applied. Refuses a schema of a newer or another version.
fn next(applied: &BTreeMap<i32, String>) -> Result<Option<&'static Migration>> {
    for (version, name) in applied {
        match MIGRATIONS.iter().find(|known| known.version() == *version) {
            Some(known) if known.name == name => {}
            Some(known) => {
                return Err(refused(format!(
                    "migration {version} of the schema is {name} and not {}: the database belongs to another build of \
                     Herald, use the one that made it",
                    known.name
                )));
            }
            None => {
                return Err(refused(format!(
                    "the schema is of version {version}, and this version of Herald knows only {}: use the newer version \
                     of Herald that migrated it",
                    MIGRATIONS.last().map_or(0, Migration::version)
                )));
            }
        }
    }
    Ok(MIGRATIONS
        .iter()
        .find(|known| !applied.contains_key(&known.version())))
}

fn refused(reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, reason.to_string())
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.code().as_deref() == Some("55P03"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_and_ascending() {
        assert!(MIGRATIONS.iter().all(|migration| migration.version() > 0));
        assert!(MIGRATIONS.is_sorted_by(|a, b| a.version() < b.version()));
    }

    #[test]
    fn the_schema_of_a_newer_version_is_refused() {
        let newer = [(9_999, "9999_newer".to_owned())].into();
        let error = next(&newer).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("9999"), "{error}");
    }
}
