//! How commands that stream end.

use std::future::Future;

use herald_cli::failure::Failure;
use herald_runtime::shutdown;

/// Runs a command until it ends by itself, or until Ctrl-C or SIGTERM, which is a success.
pub(crate) async fn on_signal(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let stop = shutdown::on_signal().map_err(|error| Failure::io("signals can't be awaited", &error))?;
    tokio::select! {
        outcome = command => outcome,
        () = stop.cancelled() => Ok(()),
    }
}
