//! Partitions of the ledger's tables: one for each [`POSTS_PER_PARTITION`] posts, made ahead of use.
//!
//! Making one takes no lock that readers or writers of the ledger wait for: the new tables are attached to their parents
//! with `SHARE UPDATE EXCLUSIVE`, and being empty they are not scanned.

use std::collections::BTreeSet;

use herald_model::PostId;
use parking_lot::Mutex;
use sqlx::AssertSqlSafe;

use crate::{
    Error, ErrorKind, Result,
    cluster::postgres::{Attempt, Postgres},
};

/// Number of posts in a partition.
pub(super) const POSTS_PER_PARTITION: i64 = 1 << 18;

/// The partitions are numbered below this value, so that their bounds are in the range of `bigint`.
const NUMBERS: std::ops::Range<i64> = 0..(1 << 62) / POSTS_PER_PARTITION;

/// The partitioned tables, with the storage of their partitions.
pub(super) const PARENTS: [Parent; 3] = [
    Parent {
        name: "ledger_slices",
        storage: "",
    },
    // Recipients are kept beside the rest of their row up to half a page.
    Parent {
        name: "ledger_chunks",
        storage: "WITH (toast_tuple_target = 4080)",
    },
    // Room for the next version of a row on its page.
    Parent {
        name: "ledger_outcomes",
        storage: "WITH (fillfactor = 75)",
    },
];

/// A partitioned table.
pub(super) struct Parent {
    pub(super) name: &'static str,
    storage: &'static str,
}

/// The partitions that are known to exist.
pub(crate) struct Partitions {
    postgres: Postgres,
    known: Mutex<BTreeSet<i64>>,
}

impl Partitions {
    pub(crate) fn new(postgres: Postgres) -> Self {
        Self {
            postgres,
            known: Mutex::default(),
        }
    }

    /// Makes sure that the partitions of posts exist, and the one after each.
    ///
    /// [`ErrorKind::LimitExceeded`] for a post above all partitions.
    pub(crate) async fn ensure(&self, posts: impl IntoIterator<Item = PostId>) -> Result<()> {
        let missing: BTreeSet<i64> = {
            let known = self.known.lock();
            let numbers = posts.into_iter().map(|post| match number(post) {
                number if NUMBERS.contains(&number) => Ok(number),
                _ => Err(Error::new(
                    ErrorKind::LimitExceeded,
                    format!("{post} is above the greatest id of a post in the ledger"),
                )),
            });
            let missing =
                numbers.filter(|number| !number.as_ref().is_ok_and(|number| known.contains(number)));
            missing.collect::<Result<_>>()?
        };
        for number in missing {
            self.postgres
                .call("make a partition of the ledger", async || {
                    self.make(&[number, number + 1]).await
                })
                .await?;
            self.known.lock().insert(number);
        }
        Ok(())
    }

    /// Runs a statement that inserts rows of posts. If one of their partitions was dropped since it was made, makes it
    /// again first. That happens to messages that are older than the ledger's retention.
    pub(super) async fn insert<T, F>(
        &self,
        posts: &[PostId],
        mut statement: impl FnMut() -> F + Send,
    ) -> Attempt<T>
    where
        F: Future<Output = sqlx::Result<T>> + Send,
    {
        match statement().await {
            Err(error) if is_missing_partition(&error) => {
                let numbers: BTreeSet<i64> = posts.iter().copied().map(number).collect();
                for number in numbers {
                    self.make(&[number]).await?;
                }
                Ok(statement().await?)
            }
            result => Ok(result?),
        }
    }

    /// Makes those of the partitions that don't exist.
    async fn make(&self, numbers: &[i64]) -> Attempt<()> {
        if self.all_exist(numbers).await? {
            return Ok(());
        }
        let mut transaction = self.postgres.begin().await?;
        // Another process may be making them: one at a time.
        sqlx::raw_sql("LOCK TABLE ONLY herald.ledger_slices IN SHARE UPDATE EXCLUSIVE MODE")
            .execute(&mut *transaction)
            .await?;
        for number in numbers {
            for parent in &PARENTS {
                let (exists, attached): (bool, bool) = sqlx::query_as(
                    "SELECT to_regclass('herald.' || $1) IS NOT NULL,
                        EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass('herald.' || $1))",
                )
                .bind(partition_name(parent.name, *number))
                .fetch_one(&mut *transaction)
                .await?;
                if !attached {
                    sqlx::raw_sql(AssertSqlSafe(make_statements(parent, *number, exists)))
                        .execute(&mut *transaction)
                        .await?;
                }
            }
        }
        transaction.commit().await?;
        tracing::info!(
            first_post = numbers[0] * POSTS_PER_PARTITION,
            "made partitions of the ledger"
        );
        Ok(())
    }

    async fn all_exist(&self, numbers: &[i64]) -> Attempt<bool> {
        const SQL: &str = "
            SELECT count(*) FROM unnest($1::text[]) AS name
            WHERE EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass('herald.' || name))";
        let names: Vec<String> = numbers
            .iter()
            .flat_map(|number| PARENTS.iter().map(|parent| partition_name(parent.name, *number)))
            .collect();
        let found: i64 = sqlx::query_scalar(SQL)
            .bind(&names)
            .fetch_one(self.postgres.pool())
            .await?;
        Ok(found == names.len().cast_signed() as i64)
    }
}

fn number(post: PostId) -> i64 {
    post.0.cast_signed().div_euclid(POSTS_PER_PARTITION)
}

/// The name of a partition, without the schema.
fn partition_name(parent: &str, number: i64) -> String {
    format!("{parent}_{number}")
}

/// check_violation: "no partition of relation … found for row". The ledger's tables have no other checks.
fn is_missing_partition(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.code().as_deref() == Some("23514"))
}

/// The statements that make a partition. A table of its name that is detached holds rows past the retention: it was not
/// dropped yet.
fn make_statements(parent: &Parent, number: i64, detached: bool) -> String {
    let (table, name) = (parent.name, partition_name(parent.name, number));
    let drop = if detached {
        format!("DROP TABLE herald.{name};")
    } else {
        String::new()
    };
    let (from, to) = (number * POSTS_PER_PARTITION, (number + 1) * POSTS_PER_PARTITION);
    format!(
        "{drop}
        CREATE TABLE herald.{name} (LIKE herald.{table} INCLUDING DEFAULTS INCLUDING STORAGE) {};
        ALTER TABLE herald.{table} ATTACH PARTITION herald.{name} FOR VALUES FROM ({from}) TO ({to});",
        parent.storage
    )
}
