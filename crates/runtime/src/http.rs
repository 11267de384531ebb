//! The small HTTP server beside each service: `/healthz`, `/readyz`, `/metrics`.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::RwLock;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::{self, Shared};
use crate::shutdown;

/// How long open connections may take to end after the shutdown.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The named checks behind `/readyz`. Cloning shares them. Without any, it is ready.
#[derive(Clone, Default)]
pub struct Readiness {
    checks: Arc<RwLock<Vec<(String, Check)>>>,
}

/// What one check says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckState {
    /// The check.
    pub name: String,
    /// Whether it passes.
    pub ready: bool,
    /// Why it doesn't; empty when it does.
    pub reason: String,
}

impl Readiness {
    /// No checks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check, asked at each `/readyz`: it must answer at once. `Err` says in words what is missing.
    pub fn check(
        &self,
        name: impl Into<String>,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        self.checks.write().push((name.into(), Arc::new(check)));
    }

    /// Adds a check that fails until its flag is set.
    pub fn flag(&self, name: impl Into<String>) -> Flag {
        let flag = Flag::default();
        let seen = flag.clone();
        self.check(name, move || {
            if seen.is_set() {
                Ok(())
            } else {
                Err("not ready".into())
            }
        });
        flag
    }

    /// What all checks say, in the order in which they were added.
    pub fn states(&self) -> Vec<CheckState> {
        // Asked without the lock held.
        let checks = self.checks.read().clone();
        checks
            .into_iter()
            .map(|(name, check)| match check() {
                Ok(()) => CheckState {
                    name,
                    ready: true,
                    reason: String::new(),
                },
                Err(reason) => CheckState {
                    name,
                    ready: false,
                    reason,
                },
            })
            .collect()
    }

    /// Whether all checks pass.
    pub fn is_ready(&self) -> bool {
        self.states().iter().all(|state| state.ready)
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.checks.read().iter().map(|(name, _)| name))
            .finish()
    }
}

/// Says that one thing is ready. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Flag(Arc<AtomicBool>);

impl Flag {
    /// Ready from now on, or no longer.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// Whether it is ready.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The three routes, for a service that has more of them.
pub fn routes(metrics: Shared, readiness: Readiness) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(readiness)
        .merge(
            Router::new()
                .route("/metrics", get(show_metrics))
                .with_state(metrics),
        )
}

/// Serves the three routes until the shutdown; connections that are open then have 2 s to end.
pub async fn serve(
    listener: TcpListener,
    metrics: Shared,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_routes(listener, routes(metrics, readiness), shutdown).await
}

/// Serves any routes until the shutdown; connections that are open then have 2 s to end.
pub async fn serve_routes(
    listener: TcpListener,
    routes: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let server = axum::serve(listener, routes).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    match shutdown::drain_after(&shutdown, DRAIN_LIMIT, server.into_future()).await {
        Ok(ended) => ended,
        Err(error) => {
            tracing::debug!(%error, "http connections left open");
            Ok(())
        }
    }
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    let states = readiness.states();
    let code = if states.iter().all(|state| state.ready) {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    match serde_json::to_string(&states) {
        Ok(body) => (code, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn show_metrics(State(metrics): State<Shared>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.encode()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn it_is_ready_when_all_checks_pass() {
        let readiness = Readiness::new();
        let router = routes(Shared::new(), readiness.clone());
        assert_eq!(ask(&router, "/readyz").await, (StatusCode::OK, "[]".into()));
        let flag = readiness.flag("consumers");
        readiness.check("nats", || Err("not connected".into()));
        assert_eq!(ask(&router, "/healthz").await.0, StatusCode::OK);
        flag.set(true);
        assert_eq!(
            ask(&router, "/readyz").await,
            (
                StatusCode::SERVICE_UNAVAILABLE,
                r#"[{"name":"consumers","ready":true,"reason":""},{"name":"nats","ready":false,"reason":"not connected"}]"#
                    .into()
            )
        );
    }

    #[tokio::test]
    async fn an_open_connection_does_not_hold_up_the_shutdown() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Shared::new(), Readiness::new(), shutdown.clone()));
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        connection
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let mut answer = [0; 15];
        connection.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }
}
