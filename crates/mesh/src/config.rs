//! How to reach the server.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// How to reach the server, and how to publish to it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The servers of one cluster, `nats://[user:password@]host:port`; at least one.
    pub urls: Vec<String>,
    /// The connections' name, as the server's monitoring shows it.
    pub name: String,
    /// Messages published and not acknowledged at a time, over all callers; 1 to 16,384.
    pub publish_in_flight_max: usize,
    /// How long one attempt to publish waits for its acknowledgement, milliseconds; at least 1.
    pub publish_timeout_ms: u64,
    /// Attempts to publish a message that has an id; at least 1. One without an id gets a single attempt: a second one
    /// could store it twice.
    pub publish_attempts_max: u32,
    /// How long after its first attempt another one may begin, milliseconds.
    pub publish_retry_ms_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            urls: vec!["nats://127.0.0.1:4222".into()],
            name: "herald".into(),
            publish_in_flight_max: 1_024,
            publish_timeout_ms: 5_000,
            publish_attempts_max: 10,
            publish_retry_ms_max: 15_000,
        }
    }
}

impl Config {
    /// The default, for this server.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            ..Self::default()
        }
    }

    /// Shortens the attempts, if need be, so that the last one of a message comes while the broker still knows the id of the
    /// first. The defaults are right for two minutes and more.
    #[must_use]
    pub fn within_window(mut self, dedupe_window: Duration) -> Self {
        let window_ms = u64::try_from(dedupe_window.as_millis()).unwrap_or(u64::MAX);
        self.publish_retry_ms_max = self.publish_retry_ms_max.min(window_ms / 8);
        self.publish_timeout_ms = self.publish_timeout_ms.min(window_ms / 24).max(1);
        self
    }

    /// Checks the bounds. Names the field.
    pub fn validate(&self) -> Result<()> {
        let check = |good: bool, message: &str| {
            if good {
                Ok(())
            } else {
                Err(Error::new(ErrorKind::Invalid, message))
            }
        };
        check(!self.urls.is_empty(), "urls must name at least one server")?;
        check(
            (1..=16_384).contains(&self.publish_in_flight_max),
            "publish_in_flight_max must be from 1 to 16384",
        )?;
        check(
            self.publish_timeout_ms >= 1,
            "publish_timeout_ms must be at least 1",
        )?;
        check(
            self.publish_attempts_max >= 1,
            "publish_attempts_max must be at least 1",
        )
    }

    pub(crate) fn publish_timeout(&self) -> Duration {
        Duration::from_millis(self.publish_timeout_ms)
    }

    pub(crate) fn publish_retry_max(&self) -> Duration {
        Duration::from_millis(self.publish_retry_ms_max)
    }
}

impl std::fmt::Debug for Config {
    /// Shows no password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let urls: Vec<_> = self.urls.iter().map(|url| without_password(url)).collect();
        f.debug_struct("Config")
            .field("urls", &urls)
            .field("name", &self.name)
            .field("publish_in_flight_max", &self.publish_in_flight_max)
            .field("publish_timeout_ms", &self.publish_timeout_ms)
            .field("publish_attempts_max", &self.publish_attempts_max)
            .field("publish_retry_ms_max", &self.publish_retry_ms_max)
            .finish()
    }
}

/// The URL with what stands before the `@` left out.
pub(crate) fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        (None, Some((_, host))) => format!("…@{host}"),
        _ => url.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let shown = format!("{:?}", Config::at("nats://me:secret@host:4222"));
        assert!(
            shown.contains("nats://…@host:4222") && !shown.contains("secret"),
            "{shown}"
        );
        assert_eq!(without_password("nats://host:4222"), "nats://host:4222");
    }

    #[test]
    fn a_short_dedupe_window_shortens_the_attempts() {
        let config = Config::default();
        assert_eq!(config.clone().within_window(Duration::from_mins(2)), config);
        let short = config.within_window(Duration::from_secs(12));
        assert_eq!(
            (short.publish_retry_ms_max, short.publish_timeout_ms),
            (1_500, 500)
        );
    }

    #[test]
    fn bounds_are_checked() {
        assert!(Config::default().validate().is_ok());
        let config = Config {
            publish_in_flight_max: 0,
            ..Config::default()
        };
        assert_eq!(config.validate().unwrap_err().kind(), ErrorKind::Invalid);
    }
}
