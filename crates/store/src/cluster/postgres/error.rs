//! Errors of PostgreSQL as errors of the store.

use crate::{Error, ErrorKind};

/// The result of an attempt at a call.
pub(crate) type Attempt<T> = std::result::Result<T, Failure>;

/// Why an attempt at a call failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// PostgreSQL or the connection to it failed.
    Sql(sqlx::Error),
    /// The call was refused, or what it read is corrupt.
    Store(Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// What a failed attempt means for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repetition {
    /// The transaction was rolled back because of concurrent ones: repeat it.
    Aborted,
    /// The connection is lost; the transaction may have been committed. A write whose repetition changes nothing can be
    /// repeated.
    Disconnected,
    /// Another attempt would fail too, or would only add load.
    Useless,
}

impl Failure {
    pub(super) fn repetition(&self) -> Repetition {
        let error = match self {
            Self::Sql(error) => error,
            Self::Store(_) => return Repetition::Useless,
        };
        match error {
            sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed | sqlx::Error::BeginFailed => {
                Repetition::Disconnected
            }
            sqlx::Error::Database(database) => match database.code().as_deref() {
                Some("40001" | "40P01") => Repetition::Aborted,
                Some("57P01" | "57P02" | "57P03" | "25006") => Repetition::Disconnected,
                Some(code) if code.starts_with("08") => Repetition::Disconnected,
                _ => Repetition::Useless,
            },
            _ => Repetition::Useless,
        }
    }

    /// Whether the server accepts no writes: it became a standby, and a new connection may reach the new primary.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self, Self::Sql(sqlx::Error::Database(error)) if error.code().as_deref() == Some("25006"))
    }

    /// The error of the store. `what` completes "can't …".
    pub(crate) fn into_error(self, what: &str) -> Error {
        match self {
            Self::Sql(error) => store_error(what, error),
            Self::Store(error) => error,
        }
    }
}

/// The error of the store for an error of PostgreSQL. `what` completes "can't …".
///
/// The message holds no credentials, because neither sqlx nor PostgreSQL puts them into errors, and no values of rows:
/// only PostgreSQL's primary message is kept, not the detail.
#[allow(clippy::needless_pass_by_value, reason = "an argument of `map_err`")]
pub(crate) fn store_error(what: &str, error: sqlx::Error) -> Error {
    let (kind, reason) = match &error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            let advice = advice(&code).map_or(String::new(), |advice| format!(": {advice}"));
            (
                kind_of_state(&code),
                format!("PostgreSQL responded \"{}\" ({code}){advice}", database.message()),
            )
        }
        sqlx::Error::PoolTimedOut => (
            ErrorKind::Unavailable,
            "got no connection to PostgreSQL in time: the server does not respond, it has no free one (raise its \
             max_connections), or all connections of this process are in use (postgres.connections_max)"
                .into(),
        ),
        sqlx::Error::PoolClosed => (ErrorKind::Unavailable, "the store is closed".into()),
        sqlx::Error::Io(io) if io.to_string().contains("certificate") => (
            ErrorKind::Unavailable,
            format!("the certificate of PostgreSQL is not accepted: {io}; check sslmode and postgres.tls_ca_file"),
        ),
        sqlx::Error::Io(io) => {
            let advice = match io.kind() {
                std::io::ErrorKind::ConnectionRefused => "; start the server, or check store.url",
                _ => "",
            };
            (
                ErrorKind::Unavailable,
                format!("the connection to PostgreSQL failed: {io}{advice}"),
            )
        }
        sqlx::Error::Tls(tls) => (
            ErrorKind::Unavailable,
            format!("can't make a TLS connection to PostgreSQL: {tls}; check sslmode and postgres.tls_ca_file"),
        ),
        sqlx::Error::Protocol(reason) => (
            ErrorKind::Unavailable,
            format!("the connection to PostgreSQL failed: {reason}"),
        ),
        sqlx::Error::WorkerCrashed | sqlx::Error::BeginFailed => {
            (ErrorKind::Unavailable, "the connection to PostgreSQL failed".into())
        }
        sqlx::Error::Configuration(reason) => (
            ErrorKind::Invalid,
            format!("the URL of PostgreSQL is invalid: {reason}"),
        ),
        sqlx::Error::InvalidArgument(_) | sqlx::Error::Encode(_) => {
            (ErrorKind::Invalid, format!("a value can't be sent: {error}"))
        }
        _ => (
            ErrorKind::Corrupt,
            format!("the answer of PostgreSQL can't be read: {error}"),
        ),
    };
    Error::new(kind, format!("can't {what}: {reason}"))
}

/// The kind for a SQLSTATE (PostgreSQL, appendix A).
fn kind_of_state(code: &str) -> ErrorKind {
    match code {
        // disk_full, out_of_memory
        "53100" | "53200" => ErrorKind::Full,
        // Wrong kinds or lengths of values, constraints: a bug of Herald, or a schema that was changed by hand.
        _ if code.starts_with("22") || code.starts_with("23") || code.starts_with("42") => {
            // insufficient_privilege, undefined_table and undefined_column, like a wrong password, are for an operator to
            // change while Herald waits.
            if matches!(code, "42501" | "42P01" | "42703") {
                ErrorKind::Unavailable
            } else {
                ErrorKind::Corrupt
            }
        }
        // data_corrupted, index_corrupted
        "XX001" | "XX002" => ErrorKind::Corrupt,
        _ => ErrorKind::Unavailable,
    }
}

/// What an operator can do about an error that names no remedy itself.
fn advice(code: &str) -> Option<&'static str> {
    match code {
        "28P01" | "28000" => Some("check the user and password in the URL of the store, and pg_hba.conf"),
        "3D000" => Some("create the database, or correct the URL of the store"),
        "42501" => {
            Some("grant the role of the URL all rights on the schema herald, or let it own the database")
        }
        "53100" => Some("free or add space on the disk of PostgreSQL"),
        "53300" => Some("raise max_connections of PostgreSQL, or lower postgres.connections_max"),
        "55P03" => Some("another transaction held a lock for longer than postgres.lock_timeout_ms"),
        "57014" => Some("the statement took longer than postgres.statement_timeout_ms"),
        "25006" => Some("the server is a standby or read-only: use the URL of the primary"),
        "42P01" | "42703" | "3F000" => Some("the schema is incomplete: run `herald store migrate`"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_kinds() {
        for (code, kind) in [
            ("53100", ErrorKind::Full),
            ("53200", ErrorKind::Full),
            ("53300", ErrorKind::Unavailable),
            ("57P01", ErrorKind::Unavailable),
            ("57014", ErrorKind::Unavailable),
            ("55P03", ErrorKind::Unavailable),
            ("08006", ErrorKind::Unavailable),
            ("25006", ErrorKind::Unavailable),
            ("40001", ErrorKind::Unavailable),
            ("42501", ErrorKind::Unavailable),
            ("42P01", ErrorKind::Unavailable),
            ("3F000", ErrorKind::Unavailable),
            ("42601", ErrorKind::Corrupt),
            ("23505", ErrorKind::Corrupt),
            ("XX001", ErrorKind::Corrupt),
        ] {
            assert_eq!(kind_of_state(code), kind, "{code}");
        }
    }

    #[test]
    fn a_pool_without_a_free_connection_is_unavailable() {
        let error = store_error("read posts", sqlx::Error::PoolTimedOut);
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().starts_with("can't read posts: "), "{error}");
    }
}
