//! The follow graph: edges as intervals of versions, and counts and versions by author.
//!
//! *Invariant:* the versions of an author have no gaps, and the intervals of one edge do not overlap: a transaction
//! that changes the followers of an author locks its row of `follow_authors` first. Transactions of different authors
//! run in parallel.
//!
//! A read names a version and selects the intervals that contain it, so it needs no lock and reads the same at any time.
//! Ended intervals stay as long as timelines, which are rebuilt from them; the history that
//! [`followers`](crate::Follows::followers) reads is trimmed earlier, by raising `trimmed_version`.

mod apply;
mod effects;
mod erase;
mod trim;

use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use herald_model::{FollowVersion, RecipientsBuilder, UserKey};

#[cfg(test)]
pub(super) use self::trim::Trimmed;
use super::{
    Postgres,
    batch::{BatchLimits, Batcher},
    keys,
};
use crate::{Error, ErrorKind, FollowChange, FollowEffect, FollowerCount, FollowerPage, Following, Result};

/// Batches of the changes of concurrent calls: those of one author would wait for each other's flush of the server's log.
const BATCHES: BatchLimits = BatchLimits {
    jobs_max: 1_024,
    weight_max: 20_000,
    in_flight_max: 2,
};

/// One page of followers at a version, as one array of `2 * follower + notify`: a row for each follower would take
/// several times as long.
///
/// It is one statement, so version and followers are of one moment.
const FOLLOWERS: &str = "
    SELECT current.version, current.trimmed_version, (
        SELECT array_agg(follower * 2 + notify::int) FROM (
            SELECT follower, notify FROM herald.follow_edges
            WHERE author = $1 AND follower > $3 AND since <= coalesce($2, current.version)
                AND (until IS NULL OR until > coalesce($2, current.version))
            ORDER BY follower LIMIT $4
        ) page
    )
    FROM herald.follow_authors current WHERE author = $1";

/// The cluster engine's [`Follows`](crate::Follows).
pub(crate) struct PostgresFollows {
    postgres: Postgres,
    writes: Batcher<Vec<FollowChange>, Vec<FollowEffect>>,
    /// Retention of the history that can be read.
    history_keep: Duration,
    /// Retention of ended intervals.
    edges_keep: Duration,
}

impl PostgresFollows {
    /// Starts the task that writes batches; must be called inside of the runtime of the engine. `history_keep` is the
    /// retention of versions, `timelines_keep` that of timelines.
    pub(crate) fn new(postgres: &Postgres, history_keep: Duration, timelines_keep: Duration) -> Self {
        let shared = postgres.clone();
        let writes = Batcher::start(BATCHES, Vec::len, move |calls| {
            let postgres = shared.clone();
            async move { apply::apply_calls(&postgres, &calls).await }.boxed()
        });
        Self {
            postgres: postgres.clone(),
            writes,
            history_keep,
            edges_keep: history_keep.max(timelines_keep),
        }
    }
}

#[async_trait]
impl crate::Follows for PostgresFollows {
    async fn apply(&self, changes: &[FollowChange]) -> Result<Vec<FollowEffect>> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        can_fail!("store.follow");
        self.writes.run(changes.to_vec()).await
    }

    async fn count(&self, author: UserKey) -> Result<FollowerCount> {
        const COUNT: &str = "SELECT followers, notify, version FROM herald.follow_authors WHERE author = $1";
        let count: Option<(i64, i64, i64)> = self
            .postgres
            .call("count the followers of an author", || async {
                let count = sqlx::query_as(COUNT)
                    .bind(i64::from(author.0))
                    .fetch_optional(self.postgres.pool());
                Ok(count.await?)
            })
            .await?;
        let Some((followers, notify, version)) = count else {
            return Ok(FollowerCount::default());
        };
        Ok(FollowerCount {
            followers: keys::number(followers)?,
            notify: keys::number(notify)?,
            version: FollowVersion(keys::number(version)?),
        })
    }

    async fn followers(
        &self,
        author: UserKey,
        at: Option<FollowVersion>,
        after: Option<UserKey>,
        limit: usize,
    ) -> Result<FollowerPage> {
        let at = at.map(|version| version.0);
        let row: Option<(i64, i64, Option<Vec<i64>>)> = self
            .postgres
            .call("read the followers of an author", || async {
                let page = sqlx::query_as(FOLLOWERS)
                    .bind(i64::from(author.0))
                    .bind(at.map(keys::bigint))
                    .bind(after.map_or(-1, |after| i64::from(after.0)))
                    .bind(keys::limit(limit.saturating_add(1)))
                    .fetch_optional(self.postgres.pool());
                Ok(page.await?)
            })
            .await?;
        let (current, trimmed, edges) = row.unwrap_or_default();
        let current = keys::number(current)?;
        let version = at.unwrap_or(current);
        if version > current {
            return Err(unknown_version(author, version, current));
        }
        if version < keys::number(trimmed)? {
            return Err(trimmed_version(author, version));
        }
        page(author, version, &edges.unwrap_or_default(), limit)
    }

    async fn following(
        &self,
        follower: UserKey,
        after: Option<UserKey>,
        limit: usize,
    ) -> Result<Vec<Following>> {
        const FOLLOWING: &str = "
            SELECT author, notify FROM herald.follow_edges
            WHERE follower = $1 AND author > $2 AND until IS NULL ORDER BY author LIMIT $3";
        let rows: Vec<(i64, bool)> = self
            .postgres
            .call("list the authors whom a user follows", || async {
                let rows = sqlx::query_as(FOLLOWING)
                    .bind(i64::from(follower.0))
                    .bind(after.map_or(-1, |after| i64::from(after.0)))
                    .bind(keys::limit(limit))
                    .fetch_all(self.postgres.pool());
                Ok(rows.await?)
            })
            .await?;
        rows.into_iter()
            .map(|(author, notify)| {
                let author = keys::user(author)?;
                Ok(Following { author, notify })
            })
            .collect()
    }

    async fn erase(&self, user: UserKey) -> Result<u64> {
        let followers = self.erase_followers(user).await?;
        Ok(followers + self.erase_following(user).await?)
    }
}

/// The page of up to `limit` of `edges`, which are `2 * follower + notify`. More than `limit` show that it is not the
/// last one.
fn page(author: UserKey, version: u64, edges: &[i64], limit: usize) -> Result<FollowerPage> {
    let mut followers = RecipientsBuilder::default();
    let mut notify = RecipientsBuilder::default();
    let mut last = None;
    for edge in edges.iter().take(limit) {
        let follower = keys::user(edge >> 1)?;
        if last >= Some(follower) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("user {follower} follows author {author} twice at version {version}"),
            ));
        }
        followers.push(follower);
        if edge & 1 == 1 {
            notify.push(follower);
        }
        last = Some(follower);
    }
    Ok(FollowerPage {
        followers: followers.finish(),
        notify: notify.finish(),
        version: FollowVersion(version),
        last,
        complete: edges.len() <= limit,
    })
}

/// Error for a version that does not exist in this store.
fn unknown_version(author: UserKey, asked: u64, current: u64) -> Error {
    Error::new(
        ErrorKind::UnknownVersion,
        format!(
            "follow version {asked} of author {author} does not exist in this store, whose newest is {current}: the \
             version comes from another store"
        ),
    )
}

/// Error for a version that is older than the retained history.
fn trimmed_version(author: UserKey, asked: u64) -> Error {
    Error::new(
        ErrorKind::HistoryTrimmed,
        format!(
            "follow version {asked} of author {author} is older than the retained history \
             (follow_history_keep_hours)"
        ),
    )
}
