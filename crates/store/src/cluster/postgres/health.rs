//! Whether records can be read and written.

use super::Postgres;
use crate::{Error, ErrorKind, Result};

impl Postgres {
    /// Checks that the server responds, has Herald's schema, accepts writes and has room for them.
    pub(crate) async fn check(&self) -> Result<()> {
        const CHECK: &str = "
            SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' FROM herald.store";
        let read_only: bool = self
            .call("check the store", || async {
                Ok(sqlx::query_scalar(CHECK).fetch_one(self.pool()).await?)
            })
            .await?;
        if read_only {
            let message = "PostgreSQL accepts no writes: the server is a standby or read-only";
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        match self.last_full() {
            Some(message) => Err(Error::new(ErrorKind::Full, message)),
            None => Ok(()),
        }
    }
}
