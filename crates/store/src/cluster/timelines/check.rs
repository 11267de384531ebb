//! Checks of the server before it is used.

use herald_model::time::Timestamp;
use redis::RedisError;

use super::{
    TimelinesConfig,
    error::redis_error,
    server::{Server, info_value},
    slots::SlotRange,
};
use crate::{Error, ErrorKind, Metrics, Result};

/// The clock of a primary of Valkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrimaryClock {
    /// The first of its slots; 0 for a server that is no cluster.
    pub slot: u16,
    /// Its time.
    pub time: Timestamp,
    /// The own time before and after the reading.
    pub read: [Timestamp; 2],
}

/// Connects to Valkey and reads the clock of each primary.
///
/// # Errors
/// [`Unavailable`](ErrorKind::Unavailable) if a server can't be reached, [`Invalid`](ErrorKind::Invalid) if the
/// configuration is.
pub async fn timeline_clocks(config: &TimelinesConfig) -> Result<Vec<PrimaryClock>> {
    let server = Server::connect(config, &Metrics::default()).await?;
    let mut clocks = Vec::new();
    for range in server.refresh_ranges().await?.iter() {
        let before = Timestamp::now();
        let answer = server.run(range.first, redis::cmd("TIME")).await?;
        let after = Timestamp::now();
        let (seconds, micros): (i64, i64) = redis::from_redis_value(answer)
            .map_err(|error| redis_error("read the clock", &RedisError::from(error)))?;
        clocks.push(PrimaryClock {
            slot: range.first,
            time: Timestamp(seconds.saturating_mul(1_000_000).saturating_add(micros)),
            read: [before, after],
        });
    }
    Ok(clocks)
}

/// Refuses servers that are too old, that drop keys when they are full, and replicas.
pub(super) async fn check(server: &Server) -> Result<()> {
    for range in server.refresh_ranges().await?.iter() {
        check_primary(server, *range).await?;
    }
    Ok(())
}

/// Checks that the server can be used now: as [`check`], and that it has memory for writes.
pub(super) async fn check_now(server: &Server) -> Result<()> {
    check(server).await?;
    for range in server.ranges().iter() {
        let info = server.info(*range, "memory").await?;
        let bytes = |name| info_value(&info, name).and_then(|value| value.parse::<u64>().ok());
        let (used, max) = (bytes("used_memory").unwrap_or(0), bytes("maxmemory").unwrap_or(0));
        if max > 0 && used >= max {
            return Err(Error::new(
                ErrorKind::Full,
                format!(
                    "Redis uses {used} bytes, and its maxmemory is {max}: raise maxmemory, or add nodes to its cluster"
                ),
            ));
        }
    }
    Ok(())
}

async fn check_primary(server: &Server, range: SlotRange) -> Result<()> {
    let info = server.info(range, "server").await?;
    // Valkey tells the version of Redis that it is compatible with as redis_version.
    let version = info_value(&info, "redis_version").unwrap_or_default();
    if !is_supported(version) {
        return refuse(format!(
            "Redis {version} is too old for timelines: use Redis 6.2 or newer, or Valkey"
        ));
    }
    let info = server.info(range, "memory").await?;
    let policy = info_value(&info, "maxmemory_policy").unwrap_or("noeviction");
    if policy != "noeviction" {
        return refuse(format!(
            "Redis has maxmemory-policy {policy}, which drops timelines when memory is short: set maxmemory-policy to \
             noeviction"
        ));
    }
    let info = server.info(range, "replication").await?;
    if info_value(&info, "role") != Some("master") {
        return refuse("timelines.url leads to a replica of Redis: use the address of the primary".into());
    }
    Ok(())
}

fn is_supported(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(2))
}

fn refuse<T>(reason: String) -> Result<T> {
    Err(Error::new(ErrorKind::Invalid, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_from_6_2_are_supported() {
        for version in ["6.2.0", "7.0.15", "10.0.1"] {
            assert!(is_supported(version), "{version}");
        }
        for version in ["", "6.0.16", "5.0.7"] {
            assert!(!is_supported(version), "{version}");
        }
    }
}
