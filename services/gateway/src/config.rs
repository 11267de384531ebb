//! Configuration.

use herald_push_endpoint::Policy;
use herald_runtime::config::SecretUrl;
use serde::{Deserialize, Serialize};

use crate::rates::Rate;

/// The gateway's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Maximum size of a request, bytes; 131,072 to 64 MiB. The largest valid post is 106 KB, a tenth of NATS's default
    /// `max_payload` of 1 MiB. With a lower `max_payload` the broker refuses posts that exceed it.
    pub request_bytes_max: usize,
    /// Maximum number of connections; 2 to 1,000,000. A client address may have as many as are left for others. Each
    /// needs a file descriptor.
    pub connections_max: usize,
    /// Maximum number of calls with one response that are in flight over all connections, until their answer is sent; 1
    /// to 1,000,000. A client address may have as many as are left for others, a connection half as many. More calls
    /// get RESOURCE_EXHAUSTED.
    pub calls_max: usize,
    /// Maximum number of calls with a stream of responses; 1 to 1,000,000. Shared like `calls_max`.
    pub response_streams_max: usize,
    /// Maximum number of forwarded streams, each of which has a connection of its own to its role; 1 to 100,000. Shared
    /// like `calls_max`.
    pub forwarded_streams_max: usize,
    /// Maximum number of concurrent HTTP/2 streams on one connection; 1 to 100,000. Clients wait before they open more.
    pub streams_per_connection_max: u32,
    /// Maximum number of bytes of requests and unread answers in memory, without the first 16 KiB of each call; 16 MiB
    /// to 1 TiB. Shared like `calls_max`. More get RESOURCE_EXHAUSTED.
    pub buffered_bytes_max: usize,
    /// Maximum time until the next byte of a request comes, milliseconds; 100 to 3,600,000.
    pub request_wait_ms: u64,
    /// Maximum time until the next request of a stream comes, milliseconds; 100 to 86,400,000.
    pub request_idle_ms: u64,
    /// Maximum time of a call with one request and one response that comes without a deadline, milliseconds; 100 to
    /// 3,600,000. Must be more than `delete_wait_ms`.
    pub call_deadline_ms: u64,
    /// Maximum time for which an answer waits until its caller reads on, milliseconds; 100 to 3,600,000. Then the call
    /// ends; if the caller reads nothing at all, the connection.
    pub answer_wait_ms: u64,
    /// Maximum number of concurrent WatchTimeline streams; 1 to 1,000,000. Shared like `calls_max`.
    pub watchers_max: usize,
    /// Maximum number of queued entries of one WatchTimeline stream; 1 to 100,000. A full queue ends the stream.
    pub watch_queue_max: usize,
    /// Interval between heartbeats on an idle WatchTimeline stream, and between its comparisons with the store,
    /// milliseconds; 100 to 600,000.
    pub heartbeat_ms: u64,
    /// Maximum number of posts in flight of one SubmitPosts stream; 1 to 10,000.
    pub submit_in_flight_max: usize,
    /// Time for which a request that is repeated while the store is away makes no second post, hours; 1 to 8,760. Must
    /// not be less than the store's retention of request ids.
    pub request_keep_hours: u64,
    /// Maximum time that DeletePost waits until the archive has the deletion, milliseconds; 0 to 60,000. After it the
    /// gateway archives the deletion itself.
    pub delete_wait_ms: u64,
    /// Maximum time of a call that is forwarded to graph, analytics or deadletter and comes without a deadline,
    /// milliseconds; 100 to 3,600,000. For streams: the time from the last request to the begin of the response.
    pub forward_deadline_ms: u64,
    /// Origins of web pages that may call the public port over gRPC-Web, such as `https://app.example.org`; `*` allows any,
    /// empty none. Calls with another origin are refused. No origin may call the operator port.
    pub cors_origins: Vec<String>,
    /// Whether both ports describe their services by reflection.
    pub reflection: bool,
    /// Limits of rates.
    pub limits: RateLimits,
    /// Which device endpoints are accepted.
    pub endpoints: Policy,
    /// Maximum time for calls in flight to finish at shutdown, milliseconds; 0 to 600,000.
    pub drain_ms: u64,
}

/// Limits of rates, of each gateway process. What exceeds one gets RESOURCE_EXHAUSTED, `RATE_LIMITED`, with the time after
/// which it is admitted. A gateway remembers 65,536 busy addresses, principals and authors each; more of them share one limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Calls a second of a client address (of IPv6, a /64), over both ports; at most 1,000,000. 0: no limit. All clients behind
    /// a proxy have one address.
    pub calls_per_second_per_address: u32,
    /// Calls of a client address at once, which then count against its rate; at most 1,000,000. 0: as many as in a second.
    pub calls_burst_per_address: u32,
    /// Calls a second of a principal, which is the name of an API key or the user of a token, over both ports; at most
    /// 1,000,000. 0: no limit. Only with authentication.
    pub calls_per_second_per_principal: u32,
    /// Calls of a principal at once, which then count against its rate; at most 1,000,000. 0: as many as in a second.
    pub calls_burst_per_principal: u32,
    /// Posts a second of an author; at most 1,000,000. 0: no limit. Repeated requests don't count.
    pub posts_per_second_per_author: u32,
    /// Posts of an author at once, which then count against the rate; at most 1,000,000. 0: as many as in a second.
    pub posts_burst_per_author: u32,
    /// Posts of an author within 24 hours, over all gateways, as far as each knows of the others' posts: a soft quota;
    /// at most 100,000. 0: no quota. Deleted posts count (while their texts are kept), repeated requests don't; while
    /// the store is away, every post passes. More get RESOURCE_EXHAUSTED, `QUOTA_EXCEEDED`.
    pub posts_per_day_max: u32,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            calls_per_second_per_address: 0,
            calls_burst_per_address: 0,
            calls_per_second_per_principal: 0,
            calls_burst_per_principal: 0,
            posts_per_second_per_author: 1_000,
            posts_burst_per_author: 100_000,
            posts_per_day_max: 0,
        }
    }
}

impl RateLimits {
    /// The rate of calls of an address.
    pub(crate) const fn per_address(&self) -> Rate {
        Rate {
            per_second: self.calls_per_second_per_address,
            burst: self.calls_burst_per_address,
        }
    }

    /// The rate of calls of a principal.
    pub(crate) const fn per_principal(&self) -> Rate {
        Rate {
            per_second: self.calls_per_second_per_principal,
            burst: self.calls_burst_per_principal,
        }
    }

    /// The rate of posts of an author.
    pub(crate) const fn per_author(&self) -> Rate {
        Rate {
            per_second: self.posts_per_second_per_author,
            burst: self.posts_burst_per_author,
        }
    }

    fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("gateway.limits", self, {
            calls_per_second_per_address: 0..=1_000_000,
            calls_burst_per_address: 0..=1_000_000,
            calls_per_second_per_principal: 0..=1_000_000,
            calls_burst_per_principal: 0..=1_000_000,
            posts_per_second_per_author: 0..=1_000_000,
            posts_burst_per_author: 0..=1_000_000,
            posts_per_day_max: 0..=100_000,
        });
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            request_bytes_max: 1 << 20,
            connections_max: 8_192,
            calls_max: 4_096,
            response_streams_max: 16_384,
            forwarded_streams_max: 256,
            streams_per_connection_max: 4_096,
            buffered_bytes_max: 256 << 20,
            request_wait_ms: 15_000,
            request_idle_ms: 600_000,
            call_deadline_ms: 60_000,
            answer_wait_ms: 30_000,
            watchers_max: 10_000,
            watch_queue_max: 256,
            heartbeat_ms: 15_000,
            submit_in_flight_max: 256,
            request_keep_hours: 24,
            delete_wait_ms: 5_000,
            forward_deadline_ms: 30_000,
            cors_origins: Vec::new(),
            reflection: true,
            limits: RateLimits::default(),
            endpoints: Policy::default(),
            drain_ms: 10_000,
        }
    }
}

impl Config {
    /// Checks all bounds; the error names the first invalid key.
    pub fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("gateway", self, {
            request_bytes_max: 131_072..=64 << 20,
            connections_max: 2..=1_000_000,
            calls_max: 1..=1_000_000,
            response_streams_max: 1..=1_000_000,
            forwarded_streams_max: 1..=100_000,
            streams_per_connection_max: 1..=100_000,
            buffered_bytes_max: 16 << 20..=1 << 40,
            request_wait_ms: 100..=3_600_000,
            request_idle_ms: 100..=86_400_000,
            call_deadline_ms: 100..=3_600_000,
            answer_wait_ms: 100..=3_600_000,
            watchers_max: 1..=1_000_000,
            watch_queue_max: 1..=100_000,
            heartbeat_ms: 100..=600_000,
            submit_in_flight_max: 1..=10_000,
            request_keep_hours: 1..=8_760,
            delete_wait_ms: 0..=60_000,
            forward_deadline_ms: 100..=3_600_000,
            drain_ms: 0..=600_000,
        });
        self.limits.validate()?;
        if self.call_deadline_ms <= self.delete_wait_ms {
            return Err(format!(
                "gateway.call_deadline_ms must be more than gateway.delete_wait_ms, which is {}, is {}",
                self.delete_wait_ms, self.call_deadline_ms
            ));
        }
        match self.cors_origins.iter().find(|origin| !is_origin(origin)) {
            Some(invalid) => Err(format!(
                "gateway.cors_origins must be origins as browsers send them, such as https://app.example.org or \
                 http://localhost:8080: a scheme and a host in lower case, a port if it is not the default one, and no path; or * for \
                 any. Has {:?}",
                SecretUrl::new(invalid).redacted()
            )),
            None => Ok(()),
        }
    }
}

/// Whether a text is an origin as browsers send it (RFC 6454, section 6.2), or `*`. Any other text would match no page.
fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text == "*";
    };
    // The port is after the brackets of an IPv6 address.
    let after_address = rest.rfind(']').map_or(0, |end| end + 1);
    let (host, port) = match rest[after_address..].split_once(':') {
        Some((_, port)) => (&rest[..rest.len() - port.len() - 1], Some(port)),
        None => (rest, None),
    };
    let is_host = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._[]:".contains(c);
    let is_scheme = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    let default_port = match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    let is_port = |port: &str| {
        let number = port.parse::<u16>().ok().filter(|_| !port.starts_with(['+', '0']));
        number.is_some() && number != default_port
    };
    !scheme.is_empty()
        && scheme.chars().all(is_scheme)
        && !host.is_empty()
        && host.chars().all(is_host)
        && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn a_value_out_of_bounds_is_named() {
        let config = Config {
            heartbeat_ms: 1,
            ..Config::default()
        };
        assert!(
            config
                .validate()
                .unwrap_err()
                .starts_with("gateway.heartbeat_ms must be 100 to 600000")
        );
        let config = Config {
            call_deadline_ms: 1_000,
            delete_wait_ms: 1_000,
            ..Config::default()
        };
        assert!(
            config
                .validate()
                .unwrap_err()
                .starts_with("gateway.call_deadline_ms")
        );
        let config = Config {
            cors_origins: vec!["a\nb".into()],
            ..Config::default()
        };
        assert!(config.validate().unwrap_err().starts_with("gateway.cors_origins"));
    }

    #[test]
    fn origins_are_as_browsers_send_them() {
        for origin in [
            "*",
            "https://app.example.org",
            "http://localhost:8080",
            "http://[::1]:3000",
            "https://[::1]",
            "capacitor://localhost",
        ] {
            assert!(is_origin(origin), "{origin}");
        }
        for text in [
            "",
            "example.org",
            "https://a/b",
            "https://a/",
            "https://*.example.org",
            "https://Example.org",
            "https://a:443",
            "http://a:80",
            "https://a:port",
            "https://a:070",
            "https://me@a",
            "https://",
            "a\nb",
            "null",
        ] {
            assert!(!is_origin(text), "{text}");
        }
    }
}
