//! Forgetting old posts in a keyspace whose keys begin with the post.

use std::sync::atomic::{AtomicU64, Ordering};

use fjall::Keyspace;
use herald_model::PostId;

use super::database::{Database, map_err};
use crate::Result;

/// Rows removed in one commit.
const ROWS: usize = 10_000;

/// How far a keyspace is forgotten.
#[derive(Default)]
pub(super) struct TrimWatermark {
    /// Posts less than this have no rows: where to go on, without reading what was removed.
    before: AtomicU64,
}

impl TrimWatermark {
    /// The first post that may have rows.
    pub(super) fn first(&self) -> PostId {
        PostId(self.before.load(Ordering::Relaxed))
    }

    /// Removes the rows of all posts less than this one; answers how many rows that were.
    pub(super) async fn forget(&self, database: &Database, rows: &Keyspace, before: PostId) -> Result<usize> {
        let mut removed = 0;
        loop {
            let from = self.first();
            if from >= before {
                return Ok(removed);
            }
            let mut batch = database.batch();
            let mut count = 0;
            for entry in rows
                .range(from.0.to_be_bytes()..before.0.to_be_bytes())
                .take(ROWS)
            {
                batch.remove(rows, entry.key().map_err(map_err)?);
                count += 1;
            }
            database.commit(batch).await?;
            removed += count;
            if count < ROWS {
                self.before.fetch_max(before.0, Ordering::Relaxed);
            }
        }
    }
}
