//! Waits until someone else has made the streams and consumers that a process needs (`nats.topology = "verify"`).

use std::{os::fd::AsFd as _, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use herald_mesh::{Difference, Mesh, Topology};
use herald_runtime::{grpc, health, telemetry::error_chain, tls::ServerTls};
use parking_lot::Mutex;
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;

use super::checks::Checks;

/// Interval of the look-ups.
const INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which an unchanged reason is logged again.
const LOG_INTERVAL: Duration = Duration::from_secs(30);
/// Number of missing streams and consumers that the reason names.
const NAMED_MAX: usize = 3;

/// The wait of a process. Meanwhile it isn't ready and says why, and its gRPC port answers health checks, so that nobody
/// takes it for dead.
pub(super) struct TopologyWait {
    /// Why the process isn't ready.
    failing: Arc<Mutex<Option<String>>>,
    /// Stops the health checks on the gRPC port.
    health: CancellationToken,
}

impl TopologyWait {
    /// Begins with a process that isn't ready.
    pub(super) async fn start(checks: &Checks, grpc: &TcpListener, tls: Option<ServerTls>) -> Result<Self> {
        let failing = checks.add_to_all("topology", "the streams and consumers have not been read yet");
        let health = serve_health(grpc, tls, checks).await?;
        Ok(Self { failing, health })
    }

    /// Waits until all streams and consumers of the topology exist. Warns about those that differ. The services can have
    /// the gRPC port then.
    pub(super) async fn until_there(&self, mesh: &Mesh, topology: &Topology) {
        let mut logged: Option<(String, Instant)> = None;
        while let Some(reason) = not_there(mesh, topology).await {
            *self.failing.lock() = Some(reason.clone());
            let is_logged = logged
                .as_ref()
                .is_some_and(|(last, at)| *last == reason && at.elapsed() < LOG_INTERVAL);
            if !is_logged {
                tracing::warn!(reason, "waiting for streams and consumers");
                logged = Some((reason, Instant::now()));
            }
            tokio::time::sleep(INTERVAL).await;
        }
        if logged.is_some() {
            tracing::info!("all streams and consumers are there");
        }
        *self.failing.lock() = Some("the services are starting".into());
        self.health.cancel();
    }

    /// Ends the wait when the services run, with checks of their own.
    pub(super) fn end(self) {
        *self.failing.lock() = None;
    }
}

/// Why the process can't start yet; `None` when it can.
async fn not_there(mesh: &Mesh, topology: &Topology) -> Option<String> {
    let differences = match mesh.verify(topology).await {
        Ok(differences) => differences,
        Err(error) => {
            return Some(format!(
                "the streams and consumers can't be read: {}",
                error_chain(&error)
            ));
        }
    };
    if let Some(missing) = missing(&differences) {
        return Some(format!(
            "{missing}: run `herald topology apply`, because nats.topology is verify, which makes none"
        ));
    }
    for difference in differences {
        tracing::warn!(
            %difference,
            "a stream or consumer differs from the configuration: run `herald topology apply`, or set the configuration \
             of all processes to it"
        );
    }
    None
}

/// Names the first missing streams and consumers; `None` if there are all.
fn missing(differences: &[Difference]) -> Option<String> {
    let missing: Vec<_> = differences.iter().filter(|one| one.is_missing()).collect();
    let named: Vec<_> = missing.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let rest = missing.len() - named.len();
    let named = named.join(", ");
    match (named.is_empty(), rest) {
        (true, _) => None,
        (false, 0) => Some(named),
        (false, rest) => Some(format!("{named}, and {rest} more")),
    }
}

/// Serves the health of the process on its gRPC port until the returned token is cancelled. The services then get the
/// port.
async fn serve_health(
    grpc: &TcpListener,
    tls: Option<ServerTls>,
    checks: &Checks,
) -> Result<CancellationToken> {
    let listener = || {
        let port = std::net::TcpListener::from(grpc.as_fd().try_clone_to_owned()?);
        TcpListener::from_std(port)
    };
    let listener = listener().context("can't serve health checks on the gRPC port")?;
    let stop = checks.draining.child_token();
    let routes = health::routes(checks.groups(), stop.clone()).await;
    let serving = grpc::serve_routes(listener, tls, routes, stop.clone());
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::warn!(error = error_chain(&error), "health checks can't be served");
        }
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_names_the_first_missing_streams_and_consumers() {
        let difference = |stream: &str| Difference {
            stream: stream.into(),
            consumer: None,
            fields: Vec::new(),
        };
        let all = ["POSTS", "SLICES", "PUSH", "DLQ"].map(difference);
        assert_eq!(missing(&[]), None);
        assert_eq!(missing(&all[..1]).unwrap(), "stream POSTS does not exist");
        assert!(
            missing(&all)
                .unwrap()
                .ends_with("stream PUSH does not exist, and 1 more")
        );
    }
}
