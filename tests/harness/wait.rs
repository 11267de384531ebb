//! Waits for conditions with a time limit.

use std::time::Duration;

/// Time between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `condition` is true. Panics with `what` after `limit`.
pub async fn until<F: Future<Output = bool>>(what: &str, limit: Duration, mut condition: impl FnMut() -> F) {
    until_some(what, limit, || {
        let holds = condition();
        async move { holds.await.then_some(()) }
    })
    .await;
}

/// Waits until `condition` returns a value. Panics with `what` after `limit`.
pub async fn until_some<T, F: Future<Output = Option<T>>>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> F,
) -> T {
    let waiting = async {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            if let Some(value) = condition().await {
                return value;
            }
        }
    };
    let waited = tokio::time::timeout(limit, waiting).await;
    waited.unwrap_or_else(|_| panic!("timed out after {limit:?} waiting until {what}"))
}
