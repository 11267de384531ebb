//! Waiting for a condition.

use std::time::Duration;

/// Time after which a wait panics.
const LIMIT: Duration = Duration::from_mins(1);

/// Delay between two checks of a condition.
const POLL: Duration = Duration::from_millis(20);

/// Waits in a test until a condition holds. `what` names the condition.
///
/// # Panics
/// The condition does not hold within a minute.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        let mut ticks = tokio::time::interval(POLL);
        while !holds().await {
            ticks.tick().await;
        }
    };
    let waited = tokio::time::timeout(LIMIT, waiting).await;
    assert!(waited.is_ok(), "not in time: {what}");
}
