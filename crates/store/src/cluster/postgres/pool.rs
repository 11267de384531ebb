//! Connections to PostgreSQL, with time-outs and repetition.

use std::{
    hash::{BuildHasher, RandomState},
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use sqlx::{
    ConnectOptions, Connection, PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};
use tokio::time::timeout;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    Attempt, ObservedPool,
    error::{Repetition, store_error},
};
use crate::{
    Error, ErrorKind, Metrics, Result,
    cluster::{PostgresConfig, SecretUrl},
};

/// Maximum number of attempts at a call whose transactions are aborted or whose connections are lost.
const ATTEMPTS_MAX: u32 = 5;

/// Time-out of a test of a connection.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for which a connection can be idle and is then used without a test. A connection that the server has closed
/// meanwhile costs another attempt.
const UNTESTED_IDLE_MAX: Duration = Duration::from_secs(1);

/// Minimum interval between two replacements of the connections to a server that accepts no writes.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// Time for which the store counts as full after a write failed for lack of space.
const FULL_AGE_MAX: Duration = Duration::from_secs(5);

/// Parameters of a URL that sqlx reads.
const URL_PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// A transaction on a connection of the pool. Dropping it rolls it back.
pub(crate) type Transaction = sqlx::Transaction<'static, sqlx::Postgres>;

/// The connections of a process. Clones share them.
#[derive(Clone)]
pub(crate) struct Postgres {
    pool: ObservedPool,
    metrics: Metrics,
    call_timeout: Duration,
    /// Connections that were opened before this moment are closed instead of used.
    stale_before: Arc<Mutex<Option<Instant>>>,
    /// When a write last failed because the server is full, with the error's message.
    full: Arc<Mutex<Option<(Instant, String)>>>,
    /// Tasks that end before the connections are closed.
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Postgres {
    /// Connects as [`connect_with`](Self::connect_with) does, without metrics.
    pub(crate) async fn connect(url: &SecretUrl, config: &PostgresConfig) -> Result<Self> {
        Self::connect_with(url, config, Metrics::default()).await
    }

    /// Connects once, to report a wrong address or password, and makes the pool.
    pub(crate) async fn connect_with(
        url: &SecretUrl,
        config: &PostgresConfig,
        metrics: Metrics,
    ) -> Result<Self> {
        let options = connect_options(url, config)?;
        let address = format!("{}:{}", options.get_host(), options.get_port());
        // The pool would only tell that it got no connection in time.
        let connection = timeout(config.acquire_timeout(), options.connect())
            .await
            .map_err(|_| no_response(&format!("connect to {address}"), config.acquire_timeout()))?
            .map_err(|error| store_error(&format!("connect to {address}"), error))?;
        drop(connection.close().await);
        let stale_before = Arc::new(Mutex::new(None));
        let (before_acquire, after_release) = (Arc::clone(&stale_before), Arc::clone(&stale_before));
        let pool = PgPoolOptions::new()
            .max_connections(config.connections_max)
            .acquire_timeout(config.acquire_timeout())
            // A call that waits too long says so itself.
            .acquire_slow_threshold(config.acquire_timeout())
            .max_lifetime(Duration::from_secs(config.connection_age_max_s))
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let stale = is_stale(&before_acquire, meta.age);
                Box::pin(async move {
                    Ok(!stale && (meta.idle_for <= UNTESTED_IDLE_MAX || responds(connection).await))
                })
            })
            // sqlx tests each released connection too, but without a time-out: the connection of a call that timed out
            // because the server is frozen would stay in use until the server thaws.
            .after_release(move |connection, meta| {
                let stale = is_stale(&after_release, meta.age);
                Box::pin(async move { Ok(!stale && responds(connection).await) })
            })
            .connect_lazy_with(options);
        Ok(Self {
            pool: ObservedPool::new(pool, metrics.clone()),
            metrics,
            call_timeout: config.call_timeout(),
            stale_before,
            full: Arc::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        })
    }

    /// The pool, to run single statements on.
    pub(crate) fn pool(&self) -> &ObservedPool {
        &self.pool
    }

    /// The metrics of the engine.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Begins a transaction.
    pub(crate) async fn begin(&self) -> sqlx::Result<Transaction> {
        self.pool.begin().await
    }

    /// Begins a transaction whose statements look each row up in an index. The planner would rather read whole tables
    /// while they are small, and a prepared statement keeps that plan while they grow.
    pub(crate) async fn begin_lookups(&self) -> sqlx::Result<Transaction> {
        const BEGIN: &str = "BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
            SET LOCAL enable_mergejoin = off";
        self.pool.begin_with(BEGIN).await
    }

    /// Makes a call whose repetition changes nothing: repeats it if its transaction was aborted or its connection lost.
    /// `what` completes "can't …". All locks that an attempt holds end with it.
    pub(crate) async fn call<T, F>(&self, what: &str, attempt: impl FnMut() -> F + Send) -> Result<T>
    where
        F: Future<Output = Attempt<T>> + Send,
    {
        self.repeat(what, attempt, |repetition| repetition != Repetition::Useless)
            .await
    }

    /// Makes a call that may take effect only once: repeats it only if its transaction was aborted.
    pub(crate) async fn call_once<T, F>(&self, what: &str, attempt: impl FnMut() -> F + Send) -> Result<T>
    where
        F: Future<Output = Attempt<T>> + Send,
    {
        self.repeat(what, attempt, |repetition| repetition == Repetition::Aborted)
            .await
    }

    async fn repeat<T, F>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> F + Send,
        can_repeat: impl Fn(Repetition) -> bool + Send,
    ) -> Result<T>
    where
        F: Future<Output = Attempt<T>> + Send,
    {
        let mut attempts = 0;
        loop {
            let failure = match timeout(self.call_timeout, attempt()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(no_response(what, self.call_timeout)),
            };
            if failure.is_read_only() {
                self.reconnect();
            }
            attempts += 1;
            if attempts == ATTEMPTS_MAX || !can_repeat(failure.repetition()) {
                let error = failure.into_error(what);
                if error.kind() == ErrorKind::Full {
                    *self.full.lock() = Some((Instant::now(), error.to_string()));
                }
                return Err(error);
            }
            tokio::time::sleep(pause_before(attempts)).await;
        }
    }

    /// Replaces all connections by new ones, when they are used next. Repeated calls within [`RECONNECT_INTERVAL`] have
    /// no effect: a server that stays read-only would get a new connection for each write that waits.
    fn reconnect(&self) {
        let mut stale_before = self.stale_before.lock();
        if stale_before.is_none_or(|at| at.elapsed() >= RECONNECT_INTERVAL) {
            *stale_before = Some(Instant::now());
        }
    }

    /// The last error of a write for lack of space, if it is not older than [`FULL_AGE_MAX`]. Writes that wait are
    /// tried again more often.
    pub(super) fn last_full(&self) -> Option<String> {
        let full = self.full.lock();
        let (_, message) = full.as_ref().filter(|(at, _)| at.elapsed() < FULL_AGE_MAX)?;
        Some(message.clone())
    }

    /// Starts a task in the runtime of the engine. It must end soon after its token is cancelled: when the returned
    /// guard is dropped, or before the connections are closed.
    pub(super) fn spawn<F>(&self, task: impl FnOnce(CancellationToken) -> F) -> DropGuard
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.closing.child_token();
        self.tasks.spawn(task(stop.clone()));
        stop.drop_guard()
    }

    /// Closes all connections. Later calls fail.
    pub(crate) async fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
        drop(timeout(self.call_timeout, self.tasks.wait()).await);
        // Waits for the connections in use, which calls give back after their time-out at the latest.
        drop(timeout(self.call_timeout, self.pool.close()).await);
    }
}

impl PostgresConfig {
    /// Whether connections to this URL verify the certificate of the server. The URL and `PGSSLMODE` tell.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a URL that no connection can be made with.
    pub fn verifies_server(&self, url: &SecretUrl) -> Result<bool> {
        let mode = connect_options(url, self)?.get_ssl_mode();
        Ok(matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull))
    }
}

/// The options of the URL and of the configuration.
fn connect_options(url: &SecretUrl, config: &PostgresConfig) -> Result<PgConnectOptions> {
    config
        .validate()
        .map_err(|reason| Error::new(ErrorKind::Invalid, format!("postgres.{reason}")))?;
    let invalid = |reason: String| {
        Error::new(
            ErrorKind::Invalid,
            format!("the URL of the store is invalid: {reason}"),
        )
    };
    url.check().map_err(|reason| invalid(format!("it {reason}")))?;
    let url = url.expose();
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(invalid("it must start with postgres://".into()));
    }
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    if authority
        .rsplit('@')
        .next()
        .is_some_and(|hosts| hosts.contains(','))
    {
        return Err(invalid(
            "it must have one host: use a name or an address that always leads to the primary".into(),
        ));
    }
    // sqlx would log an unknown parameter with its value, which a misspelled `password` has too.
    let query = url.split_once('?').map_or("", |(_, query)| query);
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let name = parameter.split('=').next().unwrap_or_default();
        if !URL_PARAMETERS.contains(&name) {
            return Err(invalid(format!("unknown parameter {name}")));
        }
    }
    let mut options = PgConnectOptions::from_str(url)
        .map_err(|error| store_error("connect", error))?
        .statement_cache_capacity(config.statement_cache_capacity)
        .extra_float_digits(None)
        .options([
            ("statement_timeout", config.statement_timeout_ms),
            ("lock_timeout", config.lock_timeout_ms),
            (
                "idle_in_transaction_session_timeout",
                2 * config.statement_timeout_ms,
            ),
        ])
        // Compiling a statement takes longer than running any of Herald's.
        .options([("jit", "off")])
        .disable_statement_logging();
    if options.get_application_name().is_none() {
        options = options.application_name("herald");
    }
    if let Some(file) = &config.tls_ca_file {
        options = options.ssl_root_cert(file);
    }
    Ok(options)
}

fn is_stale(stale_before: &Mutex<Option<Instant>>, age: Duration) -> bool {
    stale_before
        .lock()
        .is_some_and(|stale_before| stale_before.elapsed() <= age)
}

async fn responds(connection: &mut PgConnection) -> bool {
    matches!(timeout(PING_TIMEOUT, connection.ping()).await, Ok(Ok(())))
}

/// Exponential, with full jitter.
fn pause_before(attempt: u32) -> Duration {
    let max_us = 5_000_u64 << attempt.min(8);
    Duration::from_micros(RandomState::new().hash_one(attempt) % max_us)
}

fn no_response(what: &str, waited: Duration) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "can't {what}: PostgreSQL did not respond within {} ms",
            waited.as_millis()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        let error = connect_options(&url.into(), &PostgresConfig::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        error.to_string()
    }

    #[test]
    fn an_invalid_url_is_refused_without_its_password() {
        assert!(refusal("").contains("must start with postgres://"));
        assert!(refusal("mysql://u:hunter2@h/d").contains("must start with postgres://"));
        assert!(refusal("postgres://u@h/d?pasword=hunter2").contains("unknown parameter pasword"));
        assert!(refusal("postgres://u:hunter2@h1:1,h2:2/d").contains("must have one host"));
        refusal("postgres://u:hunter2@h:port/d");
        refusal("postgres://u:hunter2@h/d?sslmode=maybe");
    }

    #[test]
    fn a_server_is_verified_as_the_url_says_in_any_spelling() {
        for (query, verifies) in [
            ("sslmode=verify-full", true),
            ("sslmode=VERIFY-CA", true),
            ("ssl-mode=verify%2Dfull", true),
            ("application_name=a%26sslmode=b&sslmode=verify-full", true),
            ("sslmode=require", false),
            ("sslmode=verify-full&ssl-mode=Disable", false),
            ("application_name=a%26sslmode=verify-full", false),
        ] {
            let url = format!("postgresql://u@h/d?{query}").as_str().into();
            let verified = PostgresConfig::default().verifies_server(&url).unwrap();
            assert_eq!(verified, verifies, "{query}");
        }
        let url = "postgres://u@h/d?sslmode=maybe".into();
        let error = PostgresConfig::default().verifies_server(&url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_configuration_out_of_bounds_is_refused() {
        let config = PostgresConfig {
            connections_max: 0,
            ..PostgresConfig::default()
        };
        let error = connect_options(&"postgres://u@h/d".into(), &config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("postgres.connections_max"), "{error}");
    }

    #[test]
    fn a_pause_is_bounded() {
        for attempt in 0..20 {
            assert!(pause_before(attempt) < Duration::from_millis(1_280));
        }
    }
}
