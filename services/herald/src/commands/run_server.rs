//! Runs a started server, for `herald up` and `herald serve`.

use herald_cli::failure::Failure;
use herald_runtime::telemetry::{self, error_chain};
use tokio_util::sync::CancellationToken;

use crate::server::Server;

/// Runs the server until `shutdown`, or until one of its services fails. `meanwhile` runs beside it, and should end at
/// the shutdown. Exports the rest of the telemetry at the end.
pub(super) async fn until_shutdown(
    server: Server,
    telemetry: telemetry::Guard,
    shutdown: &CancellationToken,
    meanwhile: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    let foreground = async {
        meanwhile.await;
        shutdown.cancelled().await;
        stop.cancel();
        std::future::pending().await
    };
    let result = tokio::select! {
        result = Box::pin(server.run(stop.clone())) => result,
        result = Box::pin(foreground) => result,
    };
    telemetry.shutdown().await;
    result.map_err(|error| Failure::failed(error_chain(error.as_ref())))
}
