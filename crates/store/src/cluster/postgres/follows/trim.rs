//! Retention of the history of the graph.

use std::collections::BTreeMap;

use herald_model::time::Timestamp;

use super::PostgresFollows;
use crate::{Result, cluster::postgres::Attempt};

/// Number of versions at which one transaction trims no more.
const VERSIONS_MAX: i64 = 20_000;

/// Maximum number of rows of `follow_moments` that one transaction reads.
const MOMENTS_MAX: i64 = 1_000;

/// Maximum number of ended intervals that one statement removes.
const EDGES_MAX: i64 = 10_000;

/// Locks nothing: a second process that trims the same versions changes nothing.
const OLDEST_MOMENTS: &str = "
    SELECT id, authors, versions FROM herald.follow_moments JOIN (
        SELECT id, sum(author_count) OVER (ORDER BY at, id) - author_count AS preceding FROM (
            SELECT id, at, author_count FROM herald.follow_moments WHERE at < $1 ORDER BY at, id LIMIT $2
        ) oldest
    ) counted USING (id) WHERE preceding < $3";

const LOCK_AUTHORS: &str = "SELECT count(*) FROM (SELECT FROM herald.follow_authors WHERE author = ANY($1) ORDER BY author FOR UPDATE) locked";

const RAISE_TRIMMED: &str = "
    UPDATE herald.follow_authors author SET trimmed_version = trimmed.version
    FROM unnest($1::bigint[], $2::bigint[]) trimmed (author, version)
    WHERE author.author = trimmed.author AND author.trimmed_version < trimmed.version";

const REMOVE_ENDED: &str = "
    DELETE FROM herald.follow_edges WHERE (author, follower, since) IN (
        SELECT author, follower, since FROM herald.follow_edges WHERE ended_at < $1 LIMIT $2
    )";

/// What [`PostgresFollows::trim`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Trimmed {
    /// Versions that can't be read any more.
    pub(crate) versions: u64,
    /// Ended intervals.
    pub(crate) edges: u64,
}

impl PostgresFollows {
    /// Removes history past its retention.
    pub(crate) async fn trim(&self, now: Timestamp) -> Result<Trimmed> {
        let mut trimmed = Trimmed::default();
        let before = now.minus(self.history_keep).0;
        loop {
            let versions = self
                .postgres
                .call("trim the history of follows", || self.trim_versions(before))
                .await?;
            trimmed.versions += versions;
            if versions == 0 {
                break;
            }
        }
        // Only after the versions that need them: these intervals ended longer ago.
        let before = now.minus(self.edges_keep).0;
        loop {
            let edges = self
                .postgres
                .call("remove ended follows", || async {
                    let remove = sqlx::query(REMOVE_ENDED).bind(before).bind(EDGES_MAX);
                    Ok(remove.execute(self.postgres.pool()).await?.rows_affected())
                })
                .await?;
            trimmed.edges += edges;
            if edges == 0 {
                return Ok(trimmed);
            }
        }
    }

    /// Trims some versions that were created before `before`, and returns their number.
    async fn trim_versions(&self, before: i64) -> Attempt<u64> {
        let mut transaction = self.postgres.begin().await?;
        let moments: Vec<(i64, Vec<i64>, Vec<i64>)> = sqlx::query_as(OLDEST_MOMENTS)
            .bind(before)
            .bind(MOMENTS_MAX)
            .bind(VERSIONS_MAX)
            .fetch_all(&mut *transaction)
            .await?;
        if moments.is_empty() {
            return Ok(0);
        }
        let mut newest: BTreeMap<i64, i64> = BTreeMap::new();
        let mut ids = Vec::with_capacity(moments.len());
        let mut count = 0;
        for (id, authors, versions) in moments {
            ids.push(id);
            for (author, version) in authors.into_iter().zip(versions) {
                let newest = newest.entry(author).or_default();
                *newest = version.max(*newest);
                count += 1;
            }
        }
        let (authors, versions): (Vec<i64>, Vec<i64>) = newest.into_iter().unzip();
        sqlx::query(LOCK_AUTHORS)
            .bind(&authors)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(RAISE_TRIMMED)
            .bind(&authors)
            .bind(&versions)
            .execute(&mut *transaction)
            .await?;
        sqlx::query("DELETE FROM herald.follow_moments WHERE id = ANY($1)")
            .bind(&ids)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(count)
    }
}
