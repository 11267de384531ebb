//! Errors of Redis as errors of the store.

use redis::{ErrorKind as RedisErrorKind, RedisError, ServerErrorKind};

use crate::{Error, ErrorKind};

/// The error of the store for an error of Redis. `what` completes "can't …". Neither the client nor the server puts
/// credentials into messages.
pub(super) fn redis_error(what: &str, error: &RedisError) -> Error {
    let code = error.code().unwrap_or_default();
    let (kind, advice) = match (code, error.kind()) {
        ("OOM", _) => (
            ErrorKind::Full,
            ": raise maxmemory of Redis, or add nodes to its cluster",
        ),
        ("MISCONF", _) => (
            ErrorKind::Unavailable,
            ": Redis can't write to its disk; free space there",
        ),
        ("NOREPLICAS", _) => (
            ErrorKind::Unavailable,
            ": Redis has fewer replicas than min-replicas-to-write",
        ),
        ("WRONGTYPE", _) => (
            ErrorKind::Corrupt,
            ": another program uses keys that begin with herald:",
        ),
        ("WRONGPASS" | "NOAUTH" | "NOPERM", _) | (_, RedisErrorKind::AuthenticationFailed) => (
            ErrorKind::Unavailable,
            ": check the user and password in timelines.url, and the ACL of the user",
        ),
        (_, RedisErrorKind::InvalidClientConfig) => (
            ErrorKind::Invalid,
            ": timelines.url must be redis://HOST:PORT or rediss://HOST:PORT",
        ),
        (_, RedisErrorKind::Server(ServerErrorKind::ReadOnly)) => (
            ErrorKind::Unavailable,
            ": the server is a replica; timelines.url must lead to the primary",
        ),
        _ if error.is_timeout() => (
            ErrorKind::Unavailable,
            ": the server did not respond within timelines.connect_timeout_ms or timelines.response_timeout_ms",
        ),
        _ if error.to_string().contains("certificate") => (
            ErrorKind::Unavailable,
            ": the certificate of the server is not accepted; check timelines.tls_ca_file",
        ),
        _ if error.is_io_error() => (
            ErrorKind::Unavailable,
            ": check that the server runs, and that timelines.url leads to it, with rediss:// if it uses TLS",
        ),
        _ => (ErrorKind::Unavailable, ""),
    };
    Error::new(kind, format!("can't {what}: Redis: {error}{advice}"))
}
