//! Marks of streams: one row a stream.

use std::sync::Arc;

use async_trait::async_trait;
use fjall::Keyspace;
use herald_model::time::Timestamp;
use parking_lot::Mutex;
use prost::Message;

use super::database::{self, Database, map_err};
use crate::{Error, ErrorKind, Result, StreamMark};

/// The embedded engine's [`StreamMarks`](crate::StreamMarks).
pub(crate) struct EmbeddedStreamMarks {
    database: Arc<Database>,
    /// stream → [`Row`].
    marks: Keyspace,
    /// Held from the read of the rows until their change is applied.
    writing: Mutex<()>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Row {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(int64, tag = "2")]
    published_at: i64,
}

impl EmbeddedStreamMarks {
    pub(crate) fn open(database: &Arc<Database>) -> Result<Self> {
        Ok(Self {
            marks: database.keyspace("stream_marks", database::options)?,
            database: Arc::clone(database),
            writing: Mutex::default(),
        })
    }

    fn row(&self, stream: &str) -> Result<Option<Row>> {
        let row = self.marks.get(stream).map_err(map_err)?;
        row.map(|row| decode(&row)).transpose()
    }

    fn apply(&self, marks: &[StreamMark]) -> Result<Option<database::Committed>> {
        let _writing = self.writing.lock();
        let mut batch = self.database.batch();
        for mark in marks {
            if self
                .row(&mark.stream)?
                .is_some_and(|row| row.sequence >= mark.sequence)
            {
                continue;
            }
            let row = Row {
                sequence: mark.sequence,
                published_at: mark.published_at.0,
            };
            batch.insert(&self.marks, mark.stream.as_str(), row.encode_to_vec());
        }
        if batch.is_empty() {
            return Ok(None);
        }
        self.database.apply(batch).map(Some)
    }
}

fn decode(row: &[u8]) -> Result<Row> {
    Row::decode(row).map_err(|_| Error::new(ErrorKind::Corrupt, "can't decode the stored mark of a stream"))
}

#[async_trait]
impl crate::StreamMarks for EmbeddedStreamMarks {
    async fn record(&self, marks: &[StreamMark]) -> Result<()> {
        can_fail!("store.mark");
        match self.apply(marks)? {
            Some(committed) => committed.await,
            None => Ok(()),
        }
    }

    async fn all(&self) -> Result<Vec<StreamMark>> {
        self.marks
            .iter()
            .map(|entry| {
                let (stream, row) = entry.into_inner().map_err(map_err)?;
                let row = decode(&row)?;
                Ok(StreamMark {
                    stream: String::from_utf8_lossy(&stream).into_owned(),
                    sequence: row.sequence,
                    published_at: Timestamp(row.published_at),
                })
            })
            .collect()
    }
}
