//! The VAPID key pair of the push role, and its public key for the gateway.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result};
use herald_push::Vapid;

use super::{services::Services, spawn::Parts};

/// Delay before the next attempt to find the public key while the store is away.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Opens the VAPID key pair. Processes that share a store must have the same key, so none creates one.
pub(super) async fn open(parts: &Parts) -> Result<Vapid> {
    let (config, devices) = (&parts.config, &*parts.stores()?.devices);
    let opened = if parts.shared {
        Vapid::open_shared(&config.push, devices).await
    } else {
        Vapid::open(&config.push, &config.data_dir, devices).await
    };
    opened.context("can't start with this VAPID key")
}

/// The public key for the gateway. `own`: the key of the push role of this process, if it has one. If the store is not
/// open yet, the result is empty until a task of `workers` has found the key.
pub(super) async fn public_key(
    parts: &Parts,
    own: Option<String>,
    is_open: bool,
    workers: &mut Services,
) -> Result<Arc<OnceLock<String>>> {
    let key = Arc::new(OnceLock::new());
    let finding = find(parts, own, is_open, Arc::clone(&key))?;
    if is_open {
        finding.await.context("can't find the VAPID key")?;
    } else {
        let shutdown = workers.shutdown();
        workers.spawn("VAPID key", async move {
            let found = shutdown.run_until_cancelled(finding).await;
            found.unwrap_or(Ok(()))?;
            shutdown.cancelled().await;
            Ok::<_, herald_push::Error>(())
        });
    }
    Ok(key)
}

/// Finds the public key: `own`, otherwise as [`herald_push::public_key`]. Waits while the store is away; a gateway that
/// started without the store also waits until a push process has recorded its key.
fn find(
    parts: &Parts,
    own: Option<String>,
    is_open: bool,
    found: Arc<OnceLock<String>>,
) -> Result<impl Future<Output = Result<(), herald_push::Error>> + Send + use<>> {
    let (config, devices) = (parts.config.push.clone(), parts.stores()?.devices.clone());
    Ok(async move {
        let key = match own {
            Some(key) => key,
            None => loop {
                match herald_push::public_key(&config, &*devices).await {
                    Err(error) if error.is_store_away() => {}
                    Err(herald_push::Error::VapidKeyUnknown) if !is_open => {}
                    key => break key?,
                }
                tokio::time::sleep(RETRY_DELAY).await;
            },
        };
        let _ = found.set(key);
        Ok(())
    })
}
