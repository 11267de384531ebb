//! API keys: a row a key.

use async_trait::async_trait;
use herald_model::{ApiKey, ApiKeyId, Scopes, time::Timestamp};
use sqlx::PgConnection;

use super::{Attempt, Postgres};
use crate::{
    Error, ErrorKind, Result,
    api_keys::{self, Insertion},
};

const COLUMNS: &str = "id, name, secret_hash, scopes, created_at, expires_at, revoked_at";

type Row = (i64, String, Vec<u8>, i32, i64, Option<i64>, Option<i64>);

/// The cluster engine's [`ApiKeys`](crate::ApiKeys).
pub(crate) struct PostgresApiKeys {
    postgres: Postgres,
}

impl PostgresApiKeys {
    pub(crate) fn new(postgres: &Postgres) -> Self {
        Self {
            postgres: postgres.clone(),
        }
    }
}

#[async_trait]
impl crate::ApiKeys for PostgresApiKeys {
    async fn insert(&self, key: &ApiKey, now: Timestamp) -> Result<()> {
        self.postgres
            .call("add an API key", || async {
                let mut transaction = self.postgres.begin().await?;
                // Two inserts at one time must not both find the last place. Reads go on.
                sqlx::query("LOCK TABLE herald.api_keys IN SHARE ROW EXCLUSIVE MODE")
                    .execute(&mut *transaction)
                    .await?;
                let keys = all(&mut transaction).await?;
                match api_keys::prepare_insertion(&keys, key, now)? {
                    Insertion::Nothing => return Ok(()),
                    Insertion::Add => {}
                    Insertion::Replace(id) => {
                        sqlx::query("DELETE FROM herald.api_keys WHERE id = $1")
                            .bind(id.0.cast_signed())
                            .execute(&mut *transaction)
                            .await?;
                    }
                }
                sqlx::query(
                    "INSERT INTO herald.api_keys (id, name, secret_hash, scopes, created_at, expires_at, revoked_at)
                    VALUES ($1, $2, $3, $4, $5, $6, $7)",
                )
                .bind(key.id.0.cast_signed())
                .bind(&key.name)
                .bind(&key.secret_hash[..])
                .bind(key.scopes.bits().cast_signed())
                .bind(key.created_at.0)
                .bind(key.expires_at.map(|at| at.0))
                .bind(key.revoked_at.map(|at| at.0))
                .execute(&mut *transaction)
                .await?;
                transaction.commit().await?;
                Ok(())
            })
            .await
    }

    async fn revoke(&self, id: ApiKeyId, at: Timestamp) -> Result<Option<ApiKey>> {
        let sql = format!(
            "UPDATE herald.api_keys SET revoked_at = coalesce(revoked_at, $2) WHERE id = $1 RETURNING {COLUMNS}"
        );
        let row: Option<Row> = self
            .postgres
            .call("revoke an API key", || async {
                Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql.clone()))
                    .bind(id.0.cast_signed())
                    .bind(at.0)
                    .fetch_optional(self.postgres.pool())
                    .await?)
            })
            .await?;
        row.map(key_of).transpose()
    }

    async fn all(&self) -> Result<Vec<ApiKey>> {
        self.postgres
            .call("read the API keys", || async {
                all(&mut *self.postgres.pool().acquire().await?).await
            })
            .await
    }
}

async fn all(connection: &mut PgConnection) -> Attempt<Vec<ApiKey>> {
    let sql = format!("SELECT {COLUMNS} FROM herald.api_keys");
    let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .fetch_all(connection)
        .await?;
    let mut keys = rows.into_iter().map(key_of).collect::<Result<Vec<_>>>()?;
    api_keys::sort(&mut keys);
    Ok(keys)
}

fn key_of((id, name, secret_hash, scopes, created_at, expires_at, revoked_at): Row) -> Result<ApiKey> {
    let id = ApiKeyId(id.cast_unsigned());
    Ok(ApiKey {
        id,
        name,
        secret_hash: secret_hash.try_into().map_err(|_| {
            Error::new(
                ErrorKind::Corrupt,
                format!("the API key {id} has no hash of 32 bytes"),
            )
        })?,
        scopes: Scopes::from_bits(scopes.cast_unsigned()),
        created_at: Timestamp(created_at),
        expires_at: expires_at.map(Timestamp),
        revoked_at: revoked_at.map(Timestamp),
    })
}
