//! The trim watermark of a keyspace whose keys begin with the post.

use std::sync::atomic::{AtomicU64, Ordering};

use fjall::Keyspace;
use herald_model::PostId;

use super::database::{Database, map_err};
use crate::{Error, ErrorKind, Result};

/// Maximum number of rows removed in one commit.
const ROWS_MAX: usize = 10_000;

/// The posts below the watermark have no rows.
#[derive(Default)]
pub(super) struct TrimWatermark {
    /// The next trim starts here, so that it does not read the tombstones of removed rows.
    before: AtomicU64,
}

impl TrimWatermark {
    /// The watermark: the first post that may have rows.
    pub(super) fn first(&self) -> PostId {
        PostId(self.before.load(Ordering::Relaxed))
    }

    /// The first post that has rows: the watermark, or after a start the post of the first row.
    pub(super) fn first_with_rows(&self, rows: &Keyspace) -> Result<PostId> {
        let known = self.first();
        if known > PostId(0) {
            return Ok(known);
        }
        let Some(first) = rows.first_key_value() else {
            return Ok(known);
        };
        let key = first.key().map_err(map_err)?;
        let post = key.get(..8).and_then(|post| post.try_into().ok());
        let post = post.ok_or_else(|| Error::new(ErrorKind::Corrupt, "can't decode the post of a row"))?;
        Ok(PostId(u64::from_be_bytes(post)))
    }

    /// Removes the rows of all posts less than `before`, raises the watermark to it and returns the number of rows.
    pub(super) async fn trim(&self, database: &Database, rows: &Keyspace, before: PostId) -> Result<usize> {
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
                .take(ROWS_MAX)
            {
                batch.remove(rows, entry.key().map_err(map_err)?);
                count += 1;
            }
            database.commit(batch).await?;
            removed += count;
            if count < ROWS_MAX {
                self.before.fetch_max(before.0, Ordering::Relaxed);
            }
        }
    }
}
