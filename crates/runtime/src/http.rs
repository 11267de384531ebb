//! The HTTP server of each process: `/healthz`, `/readyz`, `/metrics`.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::{Stream, StreamExt as _};
use parking_lot::RwLock;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::connections::{Counts, Limits, Port, PortStream};
use crate::metrics::{self, Shared};
use crate::shutdown;

/// Time that open connections have to close after the shutdown.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// What clients may do: their requests are small, and answered at once.
const LIMITS: Limits = Limits {
    connections_max: 512,
    first_bytes_wait: Duration::from_secs(10),
    write_wait: Duration::from_secs(10),
    answer_wait: Duration::from_secs(10),
    reply_wait: Some(Duration::from_secs(10)),
    idle_wait: Some(Duration::from_secs(75)),
};

type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The named readiness checks of `/readyz`. Clones share them. Ready if there are none.
#[derive(Clone, Default)]
pub struct Readiness {
    checks: Arc<RwLock<Vec<(String, Check)>>>,
    /// Names of checks that are reported only.
    reported_only: Arc<RwLock<Vec<String>>>,
    /// Sets whose checks belong to this one too.
    included: Arc<RwLock<Vec<Readiness>>>,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckState {
    /// The name of the check.
    pub name: String,
    /// Whether it passes.
    pub ready: bool,
    /// Why it fails; empty if it passes.
    pub reason: String,
    /// Whether the process is not ready while the check fails. `false`: the check is reported only.
    #[serde(skip_serializing_if = "is_true")]
    pub required: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_true(value: &bool) -> bool {
    *value
}

impl Readiness {
    /// Creates an empty set of checks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check that runs at each request of `/readyz` and must not block. `Err` is the reason why it fails.
    pub fn check(
        &self,
        name: impl Into<String>,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        self.checks.write().push((name.into(), Arc::new(check)));
    }

    /// Adds a check that passes while the returned flag is set.
    pub fn flag(&self, name: impl Into<String>) -> Flag {
        let flag = Flag::default();
        let checked = flag.clone();
        self.check(name, move || {
            if checked.is_set() {
                Ok(())
            } else {
                Err("not ready".into())
            }
        });
        flag
    }

    /// Makes checks with this name informative: they are reported, and the process is ready although they fail.
    pub fn report_only(&self, name: impl Into<String>) {
        self.reported_only.write().push(name.into());
    }

    /// Adds the checks of another set, also those that are added to it later. A check that is in several sets, under the
    /// same name, is reported once; it is required if one of the sets requires it.
    pub fn include(&self, other: Readiness) {
        self.included.write().push(other);
    }

    /// The required checks that fail, in the order in which they were added.
    pub fn failing(&self) -> Vec<CheckState> {
        let mut states = self.states();
        states.retain(|state| state.required && !state.ready);
        states
    }

    /// The results of all checks, in the order in which they were added.
    pub fn states(&self) -> Vec<CheckState> {
        // Checks run without the lock.
        let checks = self.checks.read().clone();
        let reported_only = self.reported_only.read().clone();
        let mut states: Vec<CheckState> = checks
            .into_iter()
            .map(|(name, check)| {
                let result = check();
                CheckState {
                    required: !reported_only.contains(&name),
                    ready: result.is_ok(),
                    reason: result.err().unwrap_or_default(),
                    name,
                }
            })
            .collect();
        let included = self.included.read().clone();
        for state in included.iter().flat_map(Self::states) {
            match states.iter_mut().find(|known| known.name == state.name) {
                Some(known) => known.required |= state.required,
                None => states.push(state),
            }
        }
        states
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.checks.read().iter().map(|(name, _)| name))
            .finish()
    }
}

/// The state of one readiness check. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Flag(Arc<AtomicBool>);

impl Flag {
    /// Sets whether the check passes.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// Whether the check passes.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The routes `/healthz`, `/readyz` and `/metrics`, for a service that adds its own.
pub fn routes(metrics: Shared, readiness: Readiness) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(readiness)
        .merge(
            Router::new()
                .route("/metrics", get(metrics_text))
                .with_state(metrics),
        )
}

/// Serves [`routes`] until `shutdown`; open connections then have 2 s to close.
pub async fn serve(
    listener: TcpListener,
    metrics: Shared,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_routes(listener, routes(metrics, readiness), shutdown).await
}

/// Serves any routes until `shutdown`; open connections then have 2 s to close.
pub async fn serve_routes(
    listener: TcpListener,
    routes: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_limited(listener, routes, LIMITS, shutdown).await
}

async fn serve_limited(
    listener: TcpListener,
    routes: Router,
    limits: Limits,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let port = Port::new("HTTP", limits, Counts::default());
    let listener = Guarded(Box::pin(port.incoming(listener)));
    let server = axum::serve(listener, routes).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let server = port.watch_while(&shutdown, server.into_future());
    match shutdown::drain_after(&shutdown, DRAIN_LIMIT, server).await {
        Ok(served) => served,
        Err(error) => {
            tracing::debug!(%error, "closed open HTTP connections at shutdown");
            Ok(())
        }
    }
}

/// The connections of a [`Port`].
struct Guarded(Pin<Box<dyn Stream<Item = io::Result<PortStream>> + Send>>);

impl axum::serve::Listener for Guarded {
    type Io = PortStream;
    type Addr = ();

    async fn accept(&mut self) -> (PortStream, ()) {
        loop {
            match self.0.next().await {
                Some(Ok(stream)) => return (stream, ()),
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    let states = readiness.states();
    let code = if states.iter().all(|state| state.ready || !state.required) {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    match serde_json::to_string(&states) {
        Ok(body) => (code, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// OpenMetrics for readers that accept it, such as Prometheus; the older text format of Prometheus for all others.
///
/// Some metrics are read from files of the operating system, so a thread for blocking calls makes the text.
async fn metrics_text(State(metrics): State<Shared>, headers: HeaderMap) -> Response {
    let mut accepted = headers.get_all(header::ACCEPT).iter();
    let is_open_metrics = accepted.any(|accepted| {
        accepted
            .to_str()
            .is_ok_and(|accepted| accepted.contains("application/openmetrics-text"))
    });
    let made = tokio::task::spawn_blocking(move || {
        if is_open_metrics {
            (metrics::OPEN_METRICS, metrics.open_metrics())
        } else {
            (metrics::PROMETHEUS, metrics.prometheus())
        }
    });
    match made.await {
        Ok((media_type, text)) => ([(header::CONTENT_TYPE, media_type)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tower::ServiceExt as _;

    use super::*;

    async fn fetch(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readyz_is_ok_if_all_checks_pass() {
        let readiness = Readiness::new();
        let router = routes(Shared::new(), readiness.clone());
        assert_eq!(fetch(&router, "/readyz").await, (StatusCode::OK, "[]".into()));
        let flag = readiness.flag("consumers");
        readiness.check("nats", || Err("not connected".into()));
        assert_eq!(fetch(&router, "/healthz").await.0, StatusCode::OK);
        flag.set(true);
        assert_eq!(
            fetch(&router, "/readyz").await,
            (
                StatusCode::SERVICE_UNAVAILABLE,
                r#"[{"name":"consumers","ready":true,"reason":""},{"name":"nats","ready":false,"reason":"not connected"}]"#
                    .into()
            )
        );
    }

    #[tokio::test]
    async fn a_check_that_is_reported_only_does_not_prevent_readiness() {
        let readiness = Readiness::new();
        readiness.check("store", || Err("down".into()));
        readiness.report_only("store");
        assert!(readiness.failing().is_empty());
        assert_eq!(
            fetch(&routes(Shared::new(), readiness), "/readyz").await,
            (
                StatusCode::OK,
                r#"[{"name":"store","ready":false,"reason":"down","required":false}]"#.into()
            )
        );
    }

    #[test]
    fn a_check_of_several_sets_is_reported_once() {
        let (process, one, two) = (Readiness::new(), Readiness::new(), Readiness::new());
        process.include(one.clone());
        process.include(two.clone());
        for set in [&one, &two] {
            set.check("store", || Err("down".into()));
        }
        two.report_only("store");
        two.check("own", || Ok(()));
        let states = process.states();
        let names: Vec<&str> = states.iter().map(|state| state.name.as_str()).collect();
        assert_eq!(names, ["store", "own"]);
        assert!(states[0].required);
        assert!(two.failing().is_empty());
    }

    #[tokio::test]
    async fn metrics_are_in_the_format_that_their_reader_accepts() {
        let router = routes(Shared::new(), Readiness::new());
        for (accept, media_type, text) in [
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.4",
                metrics::OPEN_METRICS,
                "# EOF\n",
            ),
            ("*/*", metrics::PROMETHEUS, ""),
        ] {
            let request = Request::get("/metrics")
                .header(header::ACCEPT, accept)
                .body(Body::empty())
                .unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.headers()[header::CONTENT_TYPE], media_type);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, text);
        }
    }

    #[tokio::test]
    async fn an_open_connection_does_not_block_the_shutdown() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Shared::new(), Readiness::new(), shutdown.clone()));
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        connection
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let mut status_line = [0; 15];
        connection.read_exact(&mut status_line).await.unwrap();
        assert_eq!(&status_line, b"HTTP/1.1 200 OK");
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_sends_half_a_request_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits {
            reply_wait: Some(Duration::from_millis(200)),
            idle_wait: Some(Duration::from_millis(200)),
            ..LIMITS
        };
        let routes = routes(Shared::new(), Readiness::new());
        let server = serve_limited(listener, routes, limits, CancellationToken::new());
        let server = tokio::spawn(server);
        for request in [
            "GET /healthz HTTP/1.1\r\nhost: a\r\nslow:",
            "GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n",
        ] {
            let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
            connection.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let closed = connection.read_to_end(&mut answer);
            let closed = tokio::time::timeout(Duration::from_secs(20), closed).await;
            let _ = closed.expect("the server closes the connection");
        }
        server.abort();
    }
}
