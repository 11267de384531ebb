//! The API keys of the store, and the snapshot of them that calls are checked with.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use herald_auth::Authenticator;
use herald_model::{ApiKey, ApiKeyId, time::Timestamp};
use herald_store::ApiKeys;
use tokio::{
    sync::Mutex,
    time::{MissedTickBehavior, interval},
};

/// Interval at which the snapshot is read again. A revocation that another gateway has written is effective here after it,
/// and after the time of a read.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum time of the first read, before the port opens.
const FIRST_READ_TIMEOUT: Duration = Duration::from_secs(2);

/// The API keys. Clones share them.
#[derive(Clone)]
pub(crate) struct Keys(Arc<Inner>);

struct Inner {
    store: Arc<dyn ApiKeys>,
    /// `None` if calls need no credential.
    authenticator: Option<Arc<Authenticator>>,
    /// Held while the snapshot is read, so that an older one never replaces a newer one.
    refreshing: Mutex<()>,
    /// Whether the last read failed.
    is_stale: AtomicBool,
    metrics: herald_auth::Metrics,
}

impl Keys {
    pub(crate) fn new(
        store: Arc<dyn ApiKeys>,
        authenticator: Option<Arc<Authenticator>>,
        metrics: herald_auth::Metrics,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            authenticator,
            refreshing: Mutex::default(),
            is_stale: AtomicBool::new(false),
            metrics,
        }))
    }

    /// Adds a key. It is valid here when the call returns.
    pub(crate) async fn insert(&self, key: &ApiKey) -> herald_store::Result<()> {
        self.0.store.insert(key, Timestamp::now()).await?;
        self.refresh().await;
        Ok(())
    }

    /// Revokes a key. It is invalid here when the call returns, if the store still answers.
    pub(crate) async fn revoke(&self, id: ApiKeyId) -> herald_store::Result<Option<ApiKey>> {
        let revoked = self.0.store.revoke(id, Timestamp::now()).await?;
        self.refresh().await;
        Ok(revoked)
    }

    /// Reads all keys from the store.
    pub(crate) async fn all(&self) -> herald_store::Result<Vec<ApiKey>> {
        self.0.store.all().await
    }

    /// Reads the snapshot before the first call comes, if the store answers in time.
    pub(crate) async fn read_first(&self) {
        // Without an answer the snapshot comes with a later read.
        let _ = tokio::time::timeout(FIRST_READ_TIMEOUT, self.refresh()).await;
    }

    /// Reads the snapshot again and again, and the keys of the issuer of tokens, until the future is dropped.
    pub(crate) async fn run(self) {
        let Some(authenticator) = &self.0.authenticator else {
            return;
        };
        let refreshing = async {
            let mut interval = interval(REFRESH_INTERVAL);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                interval.tick().await;
                self.refresh().await;
            }
        };
        tokio::join!(refreshing, authenticator.run());
    }

    async fn refresh(&self) {
        let Some(authenticator) = &self.0.authenticator else {
            return;
        };
        let _refreshing = self.0.refreshing.lock().await;
        let read = self.0.store.all().await;
        self.0.metrics.count_key_read(read.is_ok());
        match read {
            Ok(keys) => {
                authenticator.keyring().set(keys);
                if self.0.is_stale.swap(false, Ordering::Relaxed) {
                    tracing::info!("read the API keys again");
                }
            }
            Err(error) => {
                if !self.0.is_stale.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "can't read the API keys; those read last stay");
                }
            }
        }
    }
}
