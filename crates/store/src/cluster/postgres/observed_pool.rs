//! A pool of connections that observes how long its users wait for one.

use std::time::Instant;

use futures::{
    FutureExt, StreamExt, TryFutureExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use sqlx::{
    Either, Execute, Executor, PgPool, Postgres, SqlStr,
    pool::PoolConnection,
    postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

use super::pool::Transaction;
use crate::Metrics;

/// The pool. It executes single statements as [`PgPool`] does. Clones share the connections.
#[derive(Debug, Clone)]
pub(crate) struct ObservedPool {
    pool: PgPool,
    metrics: Metrics,
}

impl ObservedPool {
    pub(super) fn new(pool: PgPool, metrics: Metrics) -> Self {
        metrics.set_pool(&pool);
        Self { pool, metrics }
    }

    /// Gets a connection.
    pub(super) async fn acquire(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        let started = Instant::now();
        let got = self.pool.acquire().await;
        self.metrics.record_pool_wait(started);
        got
    }

    /// Gets a connection and begins a transaction. Only the wait for the connection is observed.
    pub(super) async fn begin(&self) -> sqlx::Result<Transaction> {
        Transaction::begin(self.acquire().await?, None).await
    }

    /// Gets a connection and begins a transaction with this statement. Only the wait for the connection is observed.
    pub(crate) async fn begin_with(&self, statement: &'static str) -> sqlx::Result<Transaction> {
        Transaction::begin(self.acquire().await?, Some(SqlStr::from_static(statement))).await
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

impl<'p> Executor<'p> for &'_ ObservedPool {
    type Database = Postgres;

    /// Reads all rows before the first is returned. The statements of the store return pages.
    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Either<PgQueryResult, PgRow>>>
    where
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        let reading = async move {
            let mut connection = pool.acquire().await?;
            let steps: Vec<_> = connection.fetch_many(query).collect().await;
            Ok(stream::iter(steps))
        };
        reading.try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        async move { pool.acquire().await?.fetch_optional(query).await }.boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        async move { pool.acquire().await?.prepare_with(sql, parameters).await }.boxed()
    }
}
