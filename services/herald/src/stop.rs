//! Ends streaming commands on a signal.

use std::future::Future;

use herald_cli::failure::Failure;
use herald_runtime::shutdown;

/// Runs a command until it returns, or until Ctrl-C or SIGTERM; a signal is a success.
pub(crate) async fn run_until_signal(
    command: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let stop =
        shutdown::on_signal().map_err(|error| Failure::io("can't install the signal handlers", &error))?;
    tokio::select! {
        outcome = command => outcome,
        () = stop.cancelled() => Ok(()),
    }
}
