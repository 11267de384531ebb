//! Preferences: a row a user. They are not cached: a mute must act at once in every process.

use std::collections::HashMap;

use async_trait::async_trait;
use herald_model::{Preferences, UserKey};
use prost::Message;

use super::{Postgres, keys};
use crate::{
    PreferencesChange, Result,
    embedded::preferences::{Row, apply_change, decode},
};

/// Reads a user's row and locks it; makes an empty one, which holds the defaults, if there is none.
const LOCK: &str = "
    INSERT INTO herald.preferences AS stored (user_key, preferences) VALUES ($1, '')
    ON CONFLICT (user_key) DO UPDATE SET preferences = stored.preferences
    RETURNING preferences";

/// The cluster engine's [`Preferences`](crate::Preferences).
pub(crate) struct PostgresPreferences {
    postgres: Postgres,
}

impl PostgresPreferences {
    pub(crate) fn new(postgres: &Postgres) -> Self {
        Self {
            postgres: postgres.clone(),
        }
    }
}

#[async_trait]
impl crate::Preferences for PostgresPreferences {
    async fn of(&self, users: &[UserKey]) -> Result<Vec<Preferences>> {
        const OF: &str = "SELECT user_key, preferences FROM herald.preferences WHERE user_key = ANY($1)";
        let users: Vec<i64> = users.iter().map(|user| user.0.into()).collect();
        let rows: Vec<(i64, Vec<u8>)> = self
            .postgres
            .call("read preferences", || async {
                Ok(sqlx::query_as(OF)
                    .bind(&users)
                    .fetch_all(self.postgres.pool())
                    .await?)
            })
            .await?;
        let mut found = HashMap::with_capacity(rows.len());
        for (user, row) in rows {
            found.insert(user, decode(keys::user(user)?, &row)?);
        }
        Ok(users
            .iter()
            .map(|user| found.get(user).cloned().unwrap_or_default())
            .collect())
    }

    async fn update(&self, user: UserKey, change: &PreferencesChange) -> Result<Preferences> {
        self.postgres
            .call("change preferences", || async {
                let mut transaction = self.postgres.begin().await?;
                let row: Vec<u8> = sqlx::query_scalar(LOCK)
                    .bind(i64::from(user.0))
                    .fetch_one(&mut *transaction)
                    .await?;
                let before = decode(user, &row)?;
                let after = apply_change(user, before.clone(), change.clone())?;
                if after == before {
                    return Ok(after);
                }
                let statement = if after == Preferences::default() {
                    sqlx::query("DELETE FROM herald.preferences WHERE user_key = $1").bind(i64::from(user.0))
                } else {
                    sqlx::query("UPDATE herald.preferences SET preferences = $2 WHERE user_key = $1")
                        .bind(i64::from(user.0))
                        .bind(Row::from_preferences(&after).encode_to_vec())
                };
                statement.execute(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(after)
            })
            .await
    }

    async fn erase(&self, user: UserKey) -> Result<()> {
        self.postgres
            .call("remove the preferences of a user", || async {
                let remove = sqlx::query("DELETE FROM herald.preferences WHERE user_key = $1");
                let remove = remove.bind(i64::from(user.0));
                remove.execute(self.postgres.pool()).await?;
                Ok(())
            })
            .await
    }
}
