//! Reports the readiness of a server, for `herald up` and `herald serve`.

use std::time::Duration;

use herald_cli::output::{Output, Show};
use herald_runtime::http::{CheckState, Readiness};
use serde::Serialize;

/// Interval at which the readiness is polled until the server is ready.
const INTERVAL: Duration = Duration::from_millis(100);

/// Prints that the server is ready once all required readiness checks pass, and before that, once, which ones fail. A
/// closed standard output doesn't stop the server.
pub(super) async fn report<R: Show + Serialize, N: Show + Serialize>(
    readiness: &Readiness,
    ready: &R,
    not_ready: impl FnOnce(Vec<CheckState>) -> N,
    output: Output,
) {
    let checks = readiness.failing();
    if !checks.is_empty() {
        let _ = output.show(&not_ready(checks));
    }
    let mut ticks = tokio::time::interval(INTERVAL);
    while !readiness.failing().is_empty() {
        ticks.tick().await;
    }
    let _ = output.show(ready);
}

/// The failing checks, one a line.
pub(super) fn reasons(checks: &[CheckState]) -> String {
    let lines = checks.iter().map(|check| {
        format!(
            "\n  {}: {}",
            check.name,
            herald_cli::failure::printable(&check.reason)
        )
    });
    lines.collect()
}
