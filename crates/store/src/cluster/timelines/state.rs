//! The state of the view in PostgreSQL: activity, drowning users, beats and losses.

use std::collections::HashMap;

use herald_model::UserKey;

use super::slots::SlotRange;
use crate::{
    Result,
    cluster::postgres::{Postgres, keys::bigint},
};

/// The time of PostgreSQL's clock, microseconds since 1970.
const SERVER_TIME: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/// Maximum number of losses that are read at a time; the others follow when these are repaired.
const LOSSES_MAX: i64 = 1_000;

/// Reads and writes the state of the view.
#[derive(Clone)]
pub(super) struct ViewState {
    postgres: Postgres,
}

/// A shard as the last check found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shard {
    pub(super) range: SlotRange,
    pub(super) run_id: String,
    /// Last acknowledged beat, microseconds since 1970.
    pub(super) beat: i64,
}

/// Writes that may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) id: i64,
    pub(super) range: SlotRange,
    /// Begin of the time whose writes may be lost, microseconds since 1970.
    pub(super) since: i64,
}

/// What is known of the activity of a user.
#[derive(Debug, Clone, Copy)]
pub(super) struct UserActivity {
    pub(super) user: i64,
    /// Day of the last read, or of the first delivery.
    pub(super) day: i32,
    /// Whether workers may not have written the timeline.
    pub(super) suppressed: bool,
}

fn user_keys(users: Vec<i64>) -> Vec<UserKey> {
    let keys = users.into_iter().filter_map(|user| user.try_into().ok());
    keys.map(UserKey).collect()
}

fn range(first: i32, last: i32) -> SlotRange {
    SlotRange {
        first: u16::try_from(first).unwrap_or(0),
        last: u16::try_from(last).unwrap_or(SlotRange::ALL.last),
    }
}

impl ViewState {
    pub(super) fn new(postgres: &Postgres) -> Self {
        Self {
            postgres: postgres.clone(),
        }
    }

    pub(super) fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// The time of PostgreSQL's clock, microseconds since 1970.
    pub(super) async fn server_time(&self) -> Result<i64> {
        self.postgres
            .call("read the time", async || {
                Ok(sqlx::query_scalar(SERVER_TIME)
                    .fetch_one(self.postgres.pool())
                    .await?)
            })
            .await
    }

    /// The oldest post that timelines show.
    pub(super) async fn oldest_kept(&self) -> Result<u64> {
        const SQL: &str = "SELECT oldest_kept FROM herald.timelines_retention";
        let post: i64 = self
            .postgres
            .call("read the retention of timelines", async || {
                Ok(sqlx::query_scalar(SQL).fetch_one(self.postgres.pool()).await?)
            })
            .await?;
        Ok(u64::try_from(post).unwrap_or(0))
    }

    pub(super) async fn raise_oldest_kept(&self, post: u64) -> Result<()> {
        const SQL: &str = "UPDATE herald.timelines_retention SET oldest_kept = $1 WHERE oldest_kept < $1";
        let post = bigint(post);
        self.postgres
            .call("write the retention of timelines", async || {
                sqlx::query(SQL).bind(post).execute(self.postgres.pool()).await?;
                Ok(())
            })
            .await
    }

    /// Records users who got their first delivery.
    pub(super) async fn record_new(&self, users: &[i64], day: i32) -> Result<()> {
        const SQL: &str =
            "INSERT INTO herald.timelines_activity (user_key, day) SELECT u, $2 FROM unnest($1::bigint[]) u
            ORDER BY u ON CONFLICT DO NOTHING";
        self.record(SQL, users, day).await
    }

    /// Records users who have read.
    pub(super) async fn record_reads(&self, users: &[i64], day: i32) -> Result<()> {
        const SQL: &str = "INSERT INTO herald.timelines_activity AS a (user_key, day)
            SELECT u, $2 FROM unnest($1::bigint[]) u ORDER BY u
            ON CONFLICT (user_key) DO UPDATE SET day = excluded.day WHERE a.day < excluded.day";
        self.record(SQL, users, day).await
    }

    async fn record(&self, sql: &'static str, users: &[i64], day: i32) -> Result<()> {
        self.postgres
            .call("record the activity of users", async || {
                sqlx::query(sql)
                    .bind(users)
                    .bind(day)
                    .execute(self.postgres.pool())
                    .await?;
                Ok(())
            })
            .await
    }

    /// Records a user who came back.
    pub(super) async fn record_return(&self, user: UserKey, day: i32) -> Result<()> {
        const SQL: &str = "INSERT INTO herald.timelines_activity AS a (user_key, day, returned_at)
            VALUES ($1, $2, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
            ON CONFLICT (user_key) DO UPDATE
            SET day = greatest(a.day, excluded.day), returned_at = excluded.returned_at, suppressed_since = NULL";
        self.postgres
            .call("record the return of a user", async || {
                sqlx::query(SQL)
                    .bind(i64::from(user.0))
                    .bind(day)
                    .execute(self.postgres.pool())
                    .await?;
                Ok(())
            })
            .await
    }

    /// Users greater than `after`, ascending. `all`: also those whose timelines are written.
    pub(super) async fn activity_after(
        &self,
        after: i64,
        all: bool,
        limit: i64,
    ) -> Result<Vec<UserActivity>> {
        const SQL: &str = "SELECT user_key, day, suppressed_since IS NOT NULL FROM herald.timelines_activity
            WHERE user_key > $1 AND ($2 OR suppressed_since IS NOT NULL) ORDER BY user_key LIMIT $3";
        let rows: Vec<(i64, i32, bool)> = self
            .postgres
            .call("read the activity of users", async || {
                Ok(sqlx::query_as(SQL)
                    .bind(after)
                    .bind(all)
                    .bind(limit)
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        let activity = |(user, day, suppressed)| UserActivity {
            user,
            day,
            suppressed,
        };
        Ok(rows.into_iter().map(activity).collect())
    }

    /// Records that the timelines of those users who have not read since a day are not written from now on. Returns
    /// these users.
    pub(super) async fn record_suppressed(&self, users: &[i64], before_day: i32) -> Result<Vec<i64>> {
        // In the order of users, so that two processes don't wait for each other.
        const SQL: &str = "WITH idle AS (
                SELECT user_key FROM herald.timelines_activity WHERE user_key = ANY($1) AND day < $2
                ORDER BY user_key FOR UPDATE
            )
            UPDATE herald.timelines_activity a SET suppressed_since
                = coalesce(a.suppressed_since, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
            FROM idle WHERE a.user_key = idle.user_key RETURNING a.user_key";
        self.postgres
            .call("record the inactive users", async || {
                Ok(sqlx::query_scalar(SQL)
                    .bind(users)
                    .bind(before_day)
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await
    }

    /// Users with a read after a day whose timelines are not written since a time of PostgreSQL's clock: by workers
    /// with fewer active days.
    pub(super) async fn suppressed_since(&self, since: i64, after_day: i32) -> Result<Vec<UserKey>> {
        const SQL: &str =
            "SELECT user_key FROM herald.timelines_activity WHERE suppressed_since >= $1 AND day > $2";
        let users: Vec<i64> = self
            .postgres
            .call("read the inactive users", async || {
                Ok(sqlx::query_scalar(SQL)
                    .bind(since)
                    .bind(after_day)
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        Ok(user_keys(users))
    }

    /// Users who came back since a time of PostgreSQL's clock.
    pub(super) async fn returned_since(&self, since: i64) -> Result<Vec<UserKey>> {
        const SQL: &str = "SELECT user_key FROM herald.timelines_activity WHERE returned_at >= $1";
        let users: Vec<i64> = self
            .postgres
            .call("read the activity of users", async || {
                Ok(sqlx::query_scalar(SQL)
                    .bind(since)
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        Ok(user_keys(users))
    }

    /// The users who drown, with the number of authors whom they follow.
    pub(super) async fn drowning(&self) -> Result<HashMap<UserKey, u32>> {
        const SQL: &str = "SELECT user_key, following FROM herald.timelines_drowning";
        let rows: Vec<(i64, i32)> = self
            .postgres
            .call("read the drowning users", async || {
                Ok(sqlx::query_as(SQL).fetch_all(self.postgres.pool()).await?)
            })
            .await?;
        let user = |(user, following): (i64, i32)| {
            Some((UserKey(user.try_into().ok()?), following.try_into().ok()?))
        };
        Ok(rows.into_iter().filter_map(user).collect())
    }

    /// Counts again whom the users of a range (`after` excluded) follow, and records those who drown.
    pub(super) async fn count_drowning(&self, after: i64, up_to: i64, following_max: u32) -> Result<()> {
        const SQL: &str = "WITH counted AS (
                SELECT follower, count(*)::integer AS following FROM herald.follow_edges
                WHERE follower > $1 AND follower <= $2 AND until IS NULL
                GROUP BY follower HAVING count(*) > $3
            ), gone AS (
                DELETE FROM herald.timelines_drowning d
                WHERE d.user_key > $1 AND d.user_key <= $2
                    AND NOT EXISTS (SELECT FROM counted c WHERE c.follower = d.user_key)
            )
            INSERT INTO herald.timelines_drowning AS d (user_key, following)
            SELECT follower, following FROM counted ORDER BY follower
            ON CONFLICT (user_key) DO UPDATE SET following = excluded.following
            WHERE d.following <> excluded.following";
        self.postgres
            .call("count the followed authors", async || {
                sqlx::query(SQL)
                    .bind(after)
                    .bind(up_to)
                    .bind(i64::from(following_max))
                    .execute(self.postgres.pool())
                    .await?;
                Ok(())
            })
            .await
    }

    /// The greatest user who follows an author.
    pub(super) async fn last_follower(&self) -> Result<Option<i64>> {
        const SQL: &str = "SELECT max(follower) FROM herald.follow_edges";
        self.postgres
            .call("read the last follower", async || {
                Ok(sqlx::query_scalar(SQL).fetch_one(self.postgres.pool()).await?)
            })
            .await
    }

    /// What was seen of the shards.
    pub(super) async fn shards(&self) -> Result<Vec<Shard>> {
        const SQL: &str = "SELECT first_slot, last_slot, run_id, beat FROM herald.timelines_shards";
        let rows: Vec<(i32, i32, String, i64)> = self
            .postgres
            .call("read the shards of the timelines", async || {
                Ok(sqlx::query_as(SQL).fetch_all(self.postgres.pool()).await?)
            })
            .await?;
        let shard = |(first, last, run_id, beat)| Shard {
            range: range(first, last),
            run_id,
            beat,
        };
        Ok(rows.into_iter().map(shard).collect())
    }

    /// Whether nothing was ever delivered.
    pub(super) async fn is_new(&self) -> Result<bool> {
        const SQL: &str = "SELECT NOT EXISTS (SELECT FROM herald.ledger_slices)
            AND NOT EXISTS (SELECT FROM herald.backfills)";
        self.postgres
            .call("read whether timelines were delivered", async || {
                Ok(sqlx::query_scalar(SQL).fetch_one(self.postgres.pool()).await?)
            })
            .await
    }

    /// Records a shard that was not seen before, or that has other slots now.
    pub(super) async fn record_shard(&self, shard: &Shard) -> Result<()> {
        const SQL: &str = "INSERT INTO herald.timelines_shards (first_slot, last_slot, run_id, beat)
            VALUES ($1, $2, $3, $4) ON CONFLICT (first_slot) DO UPDATE SET last_slot = excluded.last_slot";
        self.postgres
            .call("record a shard of the timelines", async || {
                sqlx::query(SQL)
                    .bind(i32::from(shard.range.first))
                    .bind(i32::from(shard.range.last))
                    .bind(&shard.run_id)
                    .bind(shard.beat)
                    .execute(self.postgres.pool())
                    .await?;
                Ok(())
            })
            .await
    }

    /// Records an acknowledged beat of a shard whose primary is the same as at the last look.
    pub(super) async fn acknowledge_beat(&self, shard: &Shard, beat: i64) -> Result<()> {
        const SQL: &str = "UPDATE herald.timelines_shards SET beat = $3
            WHERE first_slot = $1 AND run_id = $2 AND beat < $3";
        self.postgres
            .call("record a beat of the timelines", async || {
                sqlx::query(SQL)
                    .bind(i32::from(shard.range.first))
                    .bind(&shard.run_id)
                    .bind(beat)
                    .execute(self.postgres.pool())
                    .await?;
                Ok(())
            })
            .await
    }

    /// Records a loss, together with the new state of the shard, if no other process was first. Returns whether it was
    /// recorded.
    pub(super) async fn record_loss(&self, seen: &Shard, run_id: &str, since: i64, now: i64) -> Result<bool> {
        const SHARD: &str = "UPDATE herald.timelines_shards SET run_id = $4, beat = $5
            WHERE first_slot = $1 AND run_id = $2 AND beat = $3";
        const LOSS: &str = "INSERT INTO herald.timelines_losses (first_slot, last_slot, since, found_at)
            VALUES ($1, $2, $3, $4)";
        self.postgres
            .call("record a loss of timelines", async || {
                let mut transaction = self.postgres.begin().await?;
                let recorded = sqlx::query(SHARD)
                    .bind(i32::from(seen.range.first))
                    .bind(&seen.run_id)
                    .bind(seen.beat)
                    .bind(run_id)
                    .bind(now)
                    .execute(&mut *transaction)
                    .await?
                    .rows_affected()
                    > 0;
                if recorded {
                    sqlx::query(LOSS)
                        .bind(i32::from(seen.range.first))
                        .bind(i32::from(seen.range.last))
                        .bind(since)
                        .bind(now)
                        .execute(&mut *transaction)
                        .await?;
                }
                transaction.commit().await?;
                Ok(recorded)
            })
            .await
    }

    /// The number of losses that were ever recorded. Ids would not do: of two transactions, the one with the greater id
    /// can commit first.
    pub(super) async fn losses(&self) -> Result<u64> {
        const SQL: &str = "SELECT count(*) FROM herald.timelines_losses";
        let count: i64 = self
            .postgres
            .call("count the losses of timelines", async || {
                Ok(sqlx::query_scalar(SQL).fetch_one(self.postgres.pool()).await?)
            })
            .await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// The losses that are not repaired.
    pub(super) async fn open_losses(&self) -> Result<Vec<Loss>> {
        const SQL: &str = "SELECT id, first_slot, last_slot, since FROM herald.timelines_losses
            WHERE repaired_at IS NULL ORDER BY id LIMIT $1";
        let rows: Vec<(i64, i32, i32, i64)> = self
            .postgres
            .call("read the losses of timelines", async || {
                Ok(sqlx::query_as(SQL)
                    .bind(LOSSES_MAX)
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        let loss = |(id, first, last, since)| Loss {
            id,
            range: range(first, last),
            since,
        };
        Ok(rows.into_iter().map(loss).collect())
    }

    pub(super) async fn close_loss(&self, id: i64) -> Result<()> {
        const SQL: &str = "UPDATE herald.timelines_losses
            SET repaired_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint WHERE id = $1";
        self.postgres
            .call("record the repair of timelines", async || {
                sqlx::query(SQL).bind(id).execute(self.postgres.pool()).await?;
                Ok(())
            })
            .await
    }
}
