//! Stores whose calls are observed: how long each takes, and whether it fails.

use std::sync::Arc;

use crate::{Metrics, Stores};

/// A store with the metrics of its calls. Its traits are implemented in [`later`](crate::later).
pub(crate) struct Observed<T: ?Sized> {
    pub(crate) store: Arc<T>,
    pub(crate) metrics: Metrics,
}

impl Stores {
    /// The same stores; the time of each call is recorded. Left out are the stores of devices, of which a call is about one
    /// device, and those that no message needs: leases, erasures, API keys, marks of streams, retention and health.
    #[must_use]
    pub fn observed(self, metrics: &Metrics) -> Self {
        fn observed<T: ?Sized>(store: Arc<T>, metrics: &Metrics) -> Arc<Observed<T>> {
            let metrics = metrics.clone();
            Arc::new(Observed { store, metrics })
        }
        Self {
            users: observed(self.users, metrics),
            follows: observed(self.follows, metrics),
            posts: observed(self.posts, metrics),
            preferences: observed(self.preferences, metrics),
            timelines: observed(self.timelines, metrics),
            ledger: observed(self.ledger, metrics),
            totals: observed(self.totals, metrics),
            dead_letters: observed(self.dead_letters, metrics),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_metrics::Shared;
    use herald_model::UserId;

    use crate::Metrics;
    use crate::embedded::{Config, Embedded};

    #[tokio::test]
    async fn each_call_is_recorded_by_its_operation() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: dir.path().into(),
            ..Config::default()
        };
        let store = Embedded::open(&config).unwrap();
        let metrics = Metrics::default();
        let shared = Shared::new();
        shared.register(|registry| metrics.register(registry));
        let stores = store.stores().observed(&metrics);
        let ids = [UserId::new("ada").unwrap()];
        assert_eq!(stores.users.find(&ids).await.unwrap(), [None]);
        stores.users.intern(&ids).await.unwrap();
        store.close().unwrap();
        stores
            .users
            .intern(&[UserId::new("bob").unwrap()])
            .await
            .unwrap_err();
        let text = shared.open_metrics();
        for (operation, result) in [
            ("users_find", "ok"),
            ("users_intern", "ok"),
            ("users_intern", "error"),
        ] {
            let line = format!(
                "herald_store_operation_seconds_count{{operation=\"{operation}\",result=\"{result}\"}} 1"
            );
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
