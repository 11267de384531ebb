//! Erasures: one row each.

use std::sync::Arc;

use async_trait::async_trait;
use herald_model::{PostId, UserId, UserKey, time::Timestamp};
use sqlx::{Row as _, postgres::PgRow};

use super::{Attempt, Postgres, PostgresUsers, keys};
use crate::{
    ErasedCounts, Erasure, ErasureId, Error, ErrorKind, Forgotten, Result,
    erasures::{missing, placeholder},
};

/// The columns of [`erasure`].
macro_rules! columns {
    () => {
        "id, user_key, user_id, actor, requested_at, forgotten_at, last_post, completed_at, posts, follows, devices, \
         timeline_entries, messages, dead_letters"
    };
}

/// Reads [`columns`], to be followed by a condition.
macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT ", columns!(), " FROM herald.erasures ", $rest)
    };
}

/// Whoever makes keys holds this lock, and whoever begins an erasure: so the ids of erasures ascend in the order of their
/// commits.
const LOCK: &str = "SELECT last FROM herald.counters WHERE name = 'users' FOR UPDATE";

/// The cluster engine's [`Erasures`](crate::Erasures).
pub(crate) struct PostgresErasures {
    postgres: Postgres,
    /// The dictionary, which forgets ids.
    users: Arc<PostgresUsers>,
}

impl PostgresErasures {
    pub(crate) fn new(postgres: &Postgres, users: &Arc<PostgresUsers>) -> Self {
        Self {
            postgres: postgres.clone(),
            users: Arc::clone(users),
        }
    }

    async fn begin_now(&self, id: &UserId, actor: &str, now: Timestamp) -> Attempt<Option<Erasure>> {
        const KEY: &str = "
            SELECT key, EXISTS (SELECT FROM herald.erasures WHERE user_key = key) FROM herald.users WHERE id = $1";
        const RUNNING: &str = select!("WHERE completed_at IS NULL AND user_id = $1 ORDER BY id DESC LIMIT 1");
        const FORGET: &str = "UPDATE herald.users SET id = $2 WHERE key = $1";
        const INSERT: &str = "
            INSERT INTO herald.erasures (user_key, user_id, actor, requested_at) VALUES ($1, $2, $3, $4)
            RETURNING id";
        let mut transaction = self.postgres.begin().await?;
        let _: i64 = sqlx::query_scalar(LOCK).fetch_one(&mut *transaction).await?;
        let found: Option<(i64, bool)> = sqlx::query_as(KEY)
            .bind(id.as_str())
            .fetch_optional(&mut *transaction)
            .await?;
        let key = match found {
            Some((key, false)) => key,
            // Its id is a placeholder, which no user has.
            Some((_, true)) => return Ok(None),
            None => {
                let running = sqlx::query(RUNNING).bind(id.as_str());
                let running = running.fetch_optional(&mut *transaction).await?;
                return Ok(running.as_ref().map(erasure).transpose()?);
            }
        };
        sqlx::query(FORGET)
            .bind(key)
            .bind(placeholder()?.as_str())
            .execute(&mut *transaction)
            .await?;
        let number: i64 = sqlx::query_scalar(INSERT)
            .bind(key)
            .bind(id.as_str())
            .bind(actor)
            .bind(now.0)
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Some(Erasure {
            id: ErasureId(keys::number(number)?),
            user: keys::user(key)?,
            user_id: Some(id.clone()),
            actor: actor.into(),
            requested_at: now,
            forgotten: None,
            completed_at: None,
            counts: ErasedCounts::default(),
        }))
    }

    async fn begin_again_now(
        &self,
        user: UserKey,
        post: PostId,
        actor: &str,
        now: Timestamp,
    ) -> Attempt<Option<Erasure>> {
        const INSERT: &str = concat!(
            "INSERT INTO herald.erasures (user_key, user_id, actor, requested_at)
            SELECT $1::bigint, $5::text, $3::text, $4::bigint
            WHERE EXISTS (SELECT FROM herald.erasures WHERE user_key = $1)
                AND NOT EXISTS (
                    SELECT FROM herald.erasures
                    WHERE user_key = $1 AND completed_at IS NULL AND (last_post IS NULL OR last_post >= $2)
                )
            RETURNING ",
            columns!()
        );
        let mut transaction = self.postgres.begin().await?;
        let _: i64 = sqlx::query_scalar(LOCK).fetch_one(&mut *transaction).await?;
        let inserted = sqlx::query(INSERT)
            .bind(i64::from(user.0))
            .bind(keys::bigint(post.0))
            .bind(actor)
            .bind(now.0)
            .bind(placeholder()?.as_str())
            .fetch_optional(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(inserted.as_ref().map(erasure).transpose()?)
    }

    async fn change(
        &self,
        id: ErasureId,
        what: &str,
        once: bool,
        statement: impl Fn() -> Statement + Send + Sync,
    ) -> Result<()> {
        let change = || async { Ok(statement().execute(self.postgres.pool()).await?.rows_affected()) };
        let changed = if once {
            self.postgres.call_once(what, change).await?
        } else {
            self.postgres.call(what, change).await?
        };
        if changed == 0 { Err(missing(id)) } else { Ok(()) }
    }
}

type Statement = sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>;

#[async_trait]
impl crate::Erasures for PostgresErasures {
    async fn begin(&self, id: &UserId, actor: &str, now: Timestamp) -> Result<Option<Erasure>> {
        can_fail!("store.erasure.begin");
        let begin = || self.begin_now(id, actor, now);
        let begun = self.postgres.call("begin the erasure of a user", begin).await?;
        if let Some(erasure) = &begun {
            self.users.forget(id, erasure.user);
        }
        Ok(begun)
    }

    async fn begin_again(
        &self,
        user: UserKey,
        post: PostId,
        actor: &str,
        now: Timestamp,
    ) -> Result<Option<Erasure>> {
        let begin = || self.begin_again_now(user, post, actor, now);
        self.postgres
            .call("begin another erasure of an erased user", begin)
            .await
    }

    async fn get(&self, id: ErasureId) -> Result<Option<Erasure>> {
        const GET: &str = select!("WHERE id = $1");
        let row = self
            .postgres
            .call("read an erasure", || async {
                let get = sqlx::query(GET).bind(keys::bigint(id.0));
                Ok(get.fetch_optional(self.postgres.pool()).await?)
            })
            .await?;
        row.as_ref().map(erasure).transpose()
    }

    async fn running(&self) -> Result<Vec<Erasure>> {
        const RUNNING: &str = select!("WHERE completed_at IS NULL ORDER BY id");
        let rows = self
            .postgres
            .call("list the running erasures", || async {
                Ok(sqlx::query(RUNNING).fetch_all(self.postgres.pool()).await?)
            })
            .await?;
        rows.iter().map(erasure).collect()
    }

    async fn is_forgotten(&self, id: ErasureId) -> Result<bool> {
        const IS_FORGOTTEN: &str = "
            SELECT NOT EXISTS (
                SELECT FROM herald.users_caches
                WHERE seen < $1 AND ends_at > clock_timestamp()
            )";
        self.postgres
            .call("read who caches an erased user", || async {
                let is_forgotten = sqlx::query_scalar(IS_FORGOTTEN).bind(keys::bigint(id.0));
                Ok(is_forgotten.fetch_one(self.postgres.pool()).await?)
            })
            .await
    }

    async fn record_forgotten(&self, id: ErasureId, forgotten: &Forgotten) -> Result<()> {
        const RECORD: &str = "
            UPDATE herald.erasures SET forgotten_at = coalesce(forgotten_at, $2), last_post = coalesce(last_post, $3)
            WHERE id = $1";
        let forgotten = *forgotten;
        self.change(id, "record that an erased user is forgotten", false, move || {
            sqlx::query(RECORD)
                .bind(keys::bigint(id.0))
                .bind(forgotten.at.0)
                .bind(keys::bigint(forgotten.last_post.0))
        })
        .await
    }

    async fn add(&self, id: ErasureId, counts: &ErasedCounts) -> Result<()> {
        const ADD: &str = "
            UPDATE herald.erasures SET posts = posts + $2, follows = follows + $3, devices = devices + $4,
                timeline_entries = timeline_entries + $5, messages = messages + $6, dead_letters = dead_letters + $7
            WHERE id = $1";
        let counts = *counts;
        self.change(id, "count what an erasure has removed", true, move || {
            sqlx::query(ADD)
                .bind(keys::bigint(id.0))
                .bind(keys::bigint(counts.posts))
                .bind(keys::bigint(counts.follows))
                .bind(keys::bigint(counts.devices))
                .bind(keys::bigint(counts.timeline_entries))
                .bind(keys::bigint(counts.messages))
                .bind(keys::bigint(counts.dead_letters))
        })
        .await
    }

    async fn complete(&self, id: ErasureId, now: Timestamp) -> Result<()> {
        const COMPLETE: &str = "
            UPDATE herald.erasures SET user_id = NULL, completed_at = coalesce(completed_at, $2) WHERE id = $1";
        self.change(id, "complete an erasure", false, move || {
            sqlx::query(COMPLETE).bind(keys::bigint(id.0)).bind(now.0)
        })
        .await
    }

    async fn list(&self, before: Option<ErasureId>, limit: usize) -> Result<Vec<Erasure>> {
        const LIST: &str = select!("WHERE id < $1 ORDER BY id DESC LIMIT $2");
        let before = keys::bigint(before.map_or(u64::MAX, |before| before.0));
        let rows = self
            .postgres
            .call("list erasures", || async {
                let list = sqlx::query(LIST).bind(before).bind(keys::limit(limit));
                Ok(list.fetch_all(self.postgres.pool()).await?)
            })
            .await?;
        rows.iter().map(erasure).collect()
    }
}

/// Decodes a row.
fn erasure(row: &PgRow) -> Result<Erasure> {
    let malformed = |error| Error::with_source(ErrorKind::Corrupt, "can't decode a stored erasure", error);
    let number = |column: &str| keys::number(row.try_get(column).map_err(malformed)?);
    let id = number("id")?;
    let user_id: Option<String> = row.try_get("user_id").map_err(malformed)?;
    let completed_at: Option<i64> = row.try_get("completed_at").map_err(malformed)?;
    let forgotten_at = row.try_get("forgotten_at").map_err(malformed)?;
    let last_post: Option<i64> = row.try_get("last_post").map_err(malformed)?;
    let last_post = last_post.map(keys::number).transpose()?;
    Ok(Erasure {
        id: ErasureId(id),
        user: keys::user(row.try_get("user_key").map_err(malformed)?)?,
        user_id: user_id.map(UserId::from_stored).transpose().map_err(|_| {
            let message = format!("the id of the user of erasure {id} is malformed");
            Error::new(ErrorKind::Corrupt, message)
        })?,
        actor: row.try_get("actor").map_err(malformed)?,
        requested_at: Timestamp(row.try_get("requested_at").map_err(malformed)?),
        forgotten: Forgotten::decode(forgotten_at, last_post)?,
        completed_at: completed_at.map(Timestamp),
        counts: ErasedCounts {
            posts: number("posts")?,
            follows: number("follows")?,
            devices: number("devices")?,
            timeline_entries: number("timeline_entries")?,
            messages: number("messages")?,
            dead_letters: number("dead_letters")?,
        },
    })
}
