//! The time that retention has seen: the keyspace `clock` has one row, `seen` → two `i64`.

use std::sync::Arc;

use fjall::Keyspace;
use herald_model::time::Timestamp;

use super::database::{self, Database, map_err};
use crate::{ClockCheck, Error, ErrorKind, Result, retention_clock::SeenClock};

const KEY: &str = "seen";

/// The recorded time.
#[derive(Clone)]
pub(super) struct Clock {
    database: Arc<Database>,
    rows: Keyspace,
}

impl Clock {
    pub(super) fn open(database: &Arc<Database>) -> Result<Self> {
        Ok(Self {
            rows: database.keyspace("clock", database::options)?,
            database: Arc::clone(database),
        })
    }

    /// Records the time. `newest_post` is when the newest post was accepted: what is known of the time before the first
    /// record.
    pub(super) async fn observe(&self, now: Timestamp, newest_post: Option<Timestamp>) -> Result<ClockCheck> {
        let before = match self.rows.get(KEY).map_err(map_err)? {
            Some(row) => decode(&row)?,
            None => SeenClock::new(newest_post.unwrap_or(now)),
        };
        let (seen, check) = before.observe(now, None);
        let mut row = seen.seen_at.0.to_be_bytes().to_vec();
        row.extend(seen.settled_at.0.to_be_bytes());
        let mut batch = self.database.batch();
        batch.insert(&self.rows, KEY, row);
        self.database.commit(batch).await?;
        Ok(check)
    }
}

fn decode(row: &[u8]) -> Result<SeenClock> {
    let number = |range: std::ops::Range<usize>| Some(i64::from_be_bytes(row.get(range)?.try_into().ok()?));
    let numbers = number(0..8).zip(number(8..16));
    let (seen_at, settled_at) = numbers.ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            "can't decode the time that retention has seen",
        )
    })?;
    Ok(SeenClock {
        seen_at: Timestamp(seen_at),
        settled_at: Timestamp(settled_at),
    })
}
