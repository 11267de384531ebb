//! Configuration of the connections and of publishing.

use std::time::Duration;

use async_nats::ServerAddr;
use serde::{Deserialize, Serialize};

use crate::auth::{Auth, Tls, take_credentials};
use crate::error::{Error, ErrorKind, Result};

/// Whether a process makes streams and consumers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TopologyMode {
    /// It creates missing streams and consumers, and updates those that differ.
    #[default]
    Apply,
    /// It changes nothing, and waits until they exist.
    Verify,
}

/// Configuration of the connections and of publishing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// URLs of the servers of one cluster, `nats://[user:password@]host:port` or `tls://…`; at least one. Credentials in
    /// the URLs must be the same in all, and are used unless `auth` is set.
    pub urls: Vec<String>,
    /// Name of the connections in the server's monitoring.
    pub name: String,
    /// Prefix of the subjects on which answers and pulled messages arrive; tokens without wildcards.
    pub inbox_prefix: String,
    /// Whether a consumer that was deleted is created again.
    pub topology: TopologyMode,
    /// Maximum number of publishes in flight, over all callers; 1 to 16,384.
    pub publish_in_flight_max: usize,
    /// Timeout of one publish attempt, milliseconds; at least 1.
    pub publish_timeout_ms: u64,
    /// Maximum number of attempts to publish a message with an id; at least 1. A message without an id gets one
    /// attempt: a retry could store it twice.
    pub publish_attempts_max: u32,
    /// Time after the first attempt in which a retry may start, milliseconds.
    pub publish_retry_ms_max: u64,
    /// How the client identifies itself.
    #[serde(skip)]
    pub auth: Auth,
    /// TLS.
    #[serde(skip)]
    pub tls: Tls,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            urls: vec!["nats://127.0.0.1:4222".into()],
            name: "herald".into(),
            inbox_prefix: "_INBOX".into(),
            topology: TopologyMode::default(),
            publish_in_flight_max: 1_024,
            publish_timeout_ms: 5_000,
            publish_attempts_max: 10,
            publish_retry_ms_max: 15_000,
            auth: Auth::default(),
            tls: Tls::default(),
        }
    }
}

impl Config {
    /// The default configuration, for the server at this URL.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            ..Self::default()
        }
    }

    /// Shortens the timeouts so that the last attempt is made within the dedupe window of the first. A window of two
    /// minutes or more needs no change of the defaults.
    #[must_use]
    pub fn fit_dedupe_window(mut self, dedupe_window: Duration) -> Self {
        let window_ms = u64::try_from(dedupe_window.as_millis()).unwrap_or(u64::MAX);
        self.publish_retry_ms_max = self.publish_retry_ms_max.min(window_ms / 8);
        self.publish_timeout_ms = self.publish_timeout_ms.min(window_ms / 24).max(1);
        self
    }

    /// Checks the bounds.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] names the field.
    pub fn validate(&self) -> Result<()> {
        let check = |good: bool, message: &str| {
            if good {
                Ok(())
            } else {
                Err(Error::new(ErrorKind::Invalid, message))
            }
        };
        check(!self.urls.is_empty(), "urls must name at least one server")?;
        self.access()?;
        let token = |token: &str| {
            !token.is_empty() && !token.contains(|c: char| "*>".contains(c) || c.is_whitespace())
        };
        check(
            self.inbox_prefix.split('.').all(token),
            "inbox_prefix must be a subject without wildcards, such as _INBOX",
        )?;
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

    /// The addresses of the servers without credentials, and the credentials.
    pub(crate) fn access(&self) -> Result<(Vec<ServerAddr>, Auth)> {
        let (servers, in_urls) = take_credentials(self.servers()?)?;
        match (&self.auth, in_urls) {
            (Auth::Urls, auth) => Ok((servers, auth)),
            (auth, Auth::Urls) => Ok((servers, auth.clone())),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                "urls: the URL has credentials, and others are set too; set one of them",
            )),
        }
    }

    /// The parsed URLs of the servers.
    fn servers(&self) -> Result<Vec<ServerAddr>> {
        let parse = |url: &String| {
            let invalid = |reason: &dyn std::fmt::Display| {
                let server = without_password(url);
                Error::new(ErrorKind::Invalid, format!("urls: {server:?}: {reason}"))
            };
            let address: ServerAddr = url.parse().map_err(|error: std::io::Error| invalid(&error))?;
            if address.host().is_empty() {
                return Err(invalid(&"the host is missing"));
            }
            Ok(address)
        };
        self.urls.iter().map(parse).collect()
    }

    pub(crate) fn publish_timeout(&self) -> Duration {
        Duration::from_millis(self.publish_timeout_ms)
    }

    pub(crate) fn publish_retry_max(&self) -> Duration {
        Duration::from_millis(self.publish_retry_ms_max)
    }
}

impl std::fmt::Debug for Config {
    /// Hides passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let urls: Vec<_> = self.urls.iter().map(|url| without_password(url)).collect();
        f.debug_struct("Config")
            .field("urls", &urls)
            .field("name", &self.name)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("topology", &self.topology)
            .field("publish_in_flight_max", &self.publish_in_flight_max)
            .field("publish_timeout_ms", &self.publish_timeout_ms)
            .field("publish_attempts_max", &self.publish_attempts_max)
            .field("publish_retry_ms_max", &self.publish_retry_ms_max)
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .finish()
    }
}

/// The URL without user name and password.
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
        assert_eq!(config.clone().fit_dedupe_window(Duration::from_mins(2)), config);
        let short = config.fit_dedupe_window(Duration::from_secs(12));
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
        for prefix in ["", "_INBOX.", "_INBOX.>", "a b"] {
            let config = Config {
                inbox_prefix: prefix.into(),
                ..Config::default()
            };
            assert_eq!(
                config.validate().unwrap_err().kind(),
                ErrorKind::Invalid,
                "{prefix}"
            );
        }
        for url in ["", "nats://host:port", "nats://"] {
            let error = Config::at(url).validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url}");
        }
    }
}
