//! Whether the data of an embedded store is being moved into the database.

use super::Postgres;
use crate::{Error, ErrorKind, Result};

impl Postgres {
    /// Refuses a database with an unfinished move: it has a part of the data only.
    pub(crate) async fn check_moved(&self) -> Result<()> {
        const UNFINISHED: &str = "SELECT EXISTS (SELECT FROM herald.moved_store WHERE finished_at IS NULL)";
        let unfinished: bool = self
            .call("check the store", || async {
                Ok(sqlx::query_scalar(UNFINISHED).fetch_one(self.pool()).await?)
            })
            .await?;
        if unfinished {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the data of an embedded store is being moved into this database and is not complete: \
                 run `herald migrate` again until it is finished, or empty the database with `DROP SCHEMA herald CASCADE`",
            ));
        }
        Ok(())
    }
}
