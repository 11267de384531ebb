//! What happens to the stores, how it begins and how it ends.

use super::world::World;

/// Makes each write of a row fail as on a full disk.
const FILL_DISK: &str = "
    CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
    END $$;
    DO $$
    DECLARE name text;
    BEGIN
        FOR name IN SELECT c.oid::regclass FROM pg_class c
            WHERE relnamespace = 'herald'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
        LOOP
            EXECUTE format('CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON %s EXECUTE FUNCTION full_disk()', name);
        END LOOP;
    END $$";

const EMPTY_DISK: &str = "DROP FUNCTION full_disk() CASCADE";

/// What happens to the stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    PostgresStops,
    PostgresHangs,
    RedisStops,
    RedisHangs,
    BothStop,
    PostgresIsFull,
    PostgresIsReadOnly,
    PostgresHasNoConnection,
    RedisIsFull,
}

impl Fault {
    /// The readiness checks that fail.
    pub(super) fn missing(self) -> &'static [&'static str] {
        match self {
            Self::RedisStops | Self::RedisHangs | Self::RedisIsFull => &["timelines"],
            Self::BothStop => &["store", "timelines"],
            _ => &["store"],
        }
    }

    /// Whether records can be read.
    pub(super) fn has_records(self) -> bool {
        matches!(
            self,
            Self::RedisStops
                | Self::RedisHangs
                | Self::RedisIsFull
                | Self::PostgresIsFull
                | Self::PostgresIsReadOnly
        )
    }

    /// Whether records can be written.
    pub(super) fn takes_records(self) -> bool {
        matches!(self, Self::RedisStops | Self::RedisHangs | Self::RedisIsFull)
    }

    /// Whether timelines can be read. They need the records too.
    pub(super) fn has_timelines(self) -> bool {
        matches!(
            self,
            Self::RedisIsFull | Self::PostgresIsFull | Self::PostgresIsReadOnly
        )
    }
}

impl World {
    pub(super) async fn begin(&self, fault: Fault) {
        let (postgres, redis) = (&self.postgres, &self.redis);
        match fault {
            Fault::PostgresStops => postgres.stop().await.unwrap(),
            Fault::PostgresHangs => postgres.pause().await.unwrap(),
            Fault::RedisStops => redis.stop().await.unwrap(),
            Fault::RedisHangs => redis.pause().unwrap(),
            Fault::BothStop => {
                redis.stop().await.unwrap();
                postgres.stop().await.unwrap();
            }
            Fault::PostgresIsFull => postgres.run_in("herald", FILL_DISK).await.unwrap(),
            Fault::PostgresIsReadOnly => self.set_read_only("on").await,
            Fault::PostgresHasNoConnection => {
                let occupied = postgres.occupy().await.unwrap();
                *self.occupied.lock() = Some(occupied);
            }
            Fault::RedisIsFull => self.set_maxmemory("1").await,
        }
    }

    pub(super) async fn end(&self, fault: Fault) {
        let (postgres, redis) = (&self.postgres, &self.redis);
        match fault {
            Fault::PostgresStops => postgres.restart().await.unwrap(),
            Fault::PostgresHangs => postgres.resume().unwrap(),
            Fault::RedisStops => redis.restart().await.unwrap(),
            Fault::RedisHangs => redis.resume().unwrap(),
            Fault::BothStop => {
                postgres.restart().await.unwrap();
                redis.restart().await.unwrap();
            }
            Fault::PostgresIsFull => postgres.run_in("herald", EMPTY_DISK).await.unwrap(),
            Fault::PostgresIsReadOnly => self.set_read_only("off").await,
            Fault::PostgresHasNoConnection => *self.occupied.lock() = None,
            Fault::RedisIsFull => self.set_maxmemory("0").await,
        }
    }

    async fn set_read_only(&self, value: &str) {
        let set = format!("ALTER SYSTEM SET default_transaction_read_only = {value}");
        // One by one: ALTER SYSTEM runs in no transaction block, and itself needs no write to the database.
        for statement in [set.as_str(), "SELECT pg_reload_conf()"] {
            self.postgres.run_in("herald", statement).await.unwrap();
        }
    }

    async fn set_maxmemory(&self, bytes: &str) {
        let set = ["CONFIG", "SET", "maxmemory", bytes];
        self.redis.command(&set).await.unwrap();
    }
}
