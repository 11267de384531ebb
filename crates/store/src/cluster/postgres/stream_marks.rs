//! Marks of streams: a row a stream.

use async_trait::async_trait;
use herald_model::time::Timestamp;

use super::{Postgres, keys};
use crate::{Result, StreamMark};

/// The cluster engine's [`StreamMarks`](crate::StreamMarks).
pub(crate) struct PostgresStreamMarks {
    postgres: Postgres,
}

impl PostgresStreamMarks {
    pub(crate) fn new(postgres: &Postgres) -> Self {
        Self {
            postgres: postgres.clone(),
        }
    }
}

#[async_trait]
impl crate::StreamMarks for PostgresStreamMarks {
    async fn record(&self, marks: &[StreamMark]) -> Result<()> {
        // Ordered, so that two processes lock the rows in the same order.
        const RECORD: &str = "
            INSERT INTO herald.stream_marks AS stored (stream, sequence, published_at)
            SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS new (stream, sequence, published_at)
            ORDER BY stream
            ON CONFLICT (stream) DO UPDATE SET sequence = excluded.sequence, published_at = excluded.published_at
            WHERE stored.sequence < excluded.sequence";
        if marks.is_empty() {
            return Ok(());
        }
        can_fail!("store.mark");
        let streams: Vec<&str> = marks.iter().map(|mark| mark.stream.as_str()).collect();
        let sequences: Vec<i64> = marks.iter().map(|mark| keys::bigint(mark.sequence)).collect();
        let times: Vec<i64> = marks.iter().map(|mark| mark.published_at.0).collect();
        self.postgres
            .call("record the marks of streams", || async {
                let record = sqlx::query(RECORD).bind(&streams).bind(&sequences).bind(&times);
                record.execute(self.postgres.pool()).await?;
                Ok(())
            })
            .await
    }

    async fn all(&self) -> Result<Vec<StreamMark>> {
        const ALL: &str =
            r#"SELECT stream, sequence, published_at FROM herald.stream_marks ORDER BY stream COLLATE "C""#;
        let rows: Vec<(String, i64, i64)> = self
            .postgres
            .call("read the marks of streams", || async {
                Ok(sqlx::query_as(ALL).fetch_all(self.postgres.pool()).await?)
            })
            .await?;
        rows.into_iter()
            .map(|(stream, sequence, published_at)| {
                Ok(StreamMark {
                    stream,
                    sequence: keys::number(sequence)?,
                    published_at: Timestamp(published_at),
                })
            })
            .collect()
    }
}
