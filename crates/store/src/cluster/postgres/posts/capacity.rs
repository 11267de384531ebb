//! Whether the database is below its configured size, from samples. A disk of PostgreSQL that is full refuses no posts:
//! they wait in POSTS, as while PostgreSQL is away.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{Error, ErrorKind, Result, cluster::postgres::Postgres};

/// Maximum age of a sample.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(10);

/// Answers from the last sample at once, and takes a new one in the background.
pub(super) struct Capacity {
    postgres: Postgres,
    /// 0: no limit.
    database_mb_max: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    database_mb: u64,
    /// When the last sample was begun.
    sampled_at: Option<Instant>,
}

impl Capacity {
    pub(super) fn new(postgres: &Postgres, database_mb_max: u64) -> Self {
        Self {
            postgres: postgres.clone(),
            database_mb_max,
            state: Arc::default(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.database_mb_max == 0 {
            return Ok(());
        }
        let mut state = self.state.lock();
        if state.sampled_at.is_none_or(|at| at.elapsed() >= SAMPLE_AGE_MAX) {
            state.sampled_at = Some(Instant::now());
            self.sample();
        }
        if state.database_mb < self.database_mb_max {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Full,
            format!(
                "the database has {} MiB and new posts are accepted below {} MiB (store.postgres.database_mb_max): \
                 raise the limit, or shorten the retention",
                state.database_mb, self.database_mb_max
            ),
        ))
    }

    /// Takes a sample. A database that can't be reached keeps the last one.
    fn sample(&self) {
        let (postgres, state) = (self.postgres.clone(), Arc::clone(&self.state));
        tokio::spawn(async move {
            let bytes: Result<i64> = postgres
                .call("read the size of the database", || async {
                    let size = sqlx::query_scalar("SELECT pg_database_size(current_database())")
                        .fetch_one(postgres.pool());
                    Ok(size.await?)
                })
                .await;
            if let Ok(bytes) = bytes {
                state.lock().database_mb = u64::try_from(bytes).unwrap_or(0) >> 20;
            }
        });
    }
}
