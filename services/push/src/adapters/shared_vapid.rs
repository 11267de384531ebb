//! The VAPID key of several processes that share a store.
//!
//! All of them must have the same key, so none creates one: the key is in the configuration of each push process, and the
//! store records its public key. The gateway needs the public key only.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use herald_store::Devices;
use tracing::{info, warn};

use super::Vapid;
use crate::{Config, Error};

/// Maximum time that a gateway waits until a push process has recorded its key.
const WAIT_MAX: Duration = Duration::from_secs(30);
const WAIT_INTERVAL: Duration = Duration::from_millis(500);

impl Vapid {
    /// Loads the key from the configuration, and makes sure that it is the key that the store records. Records it if the
    /// store has none.
    ///
    /// # Errors
    /// [`Error::VapidKeyMissing`] if no key is configured. [`Error::VapidKeyDiffers`] if another process has recorded
    /// another one, unless [`Config::vapid_key_replace`] is set: then the Web Push devices are unregistered.
    pub async fn open_shared(config: &Config, devices: &dyn Devices) -> Result<Self, Error> {
        let vapid = Self::configured(config)?.ok_or(Error::VapidKeyMissing)?;
        match devices.vapid_key().await? {
            Some(recorded) if recorded == vapid.public_key() => return Ok(vapid),
            Some(_) if !config.vapid_key_replace => return Err(Error::VapidKeyDiffers),
            Some(_) => {
                let devices_removed = devices.unregister_web_push().await?;
                warn!(
                    devices_removed,
                    "the VAPID key was replaced: Web Push devices unregistered, their browsers have to subscribe again"
                );
            }
            None => {}
        }
        devices.set_vapid_key(vapid.public_key()).await?;
        // Another process can have recorded another key at the same time; the last one counts.
        match devices.vapid_key().await? {
            Some(recorded) if recorded == vapid.public_key() => Ok(vapid),
            _ => Err(Error::VapidKeyDiffers),
        }
    }
}

/// The public key in base64url, for a gateway without push: that of the configured key, otherwise the recorded one. Waits
/// for a while until a push process has recorded it.
///
/// # Errors
/// [`Error::VapidKeyUnknown`] if there is none in time.
pub async fn public_key(config: &Config, devices: &dyn Devices) -> Result<String, Error> {
    if Vapid::configured(config)?.is_some() {
        return Ok(Vapid::open_shared(config, devices).await?.public_key_base64url());
    }
    let recorded = async {
        let mut told = false;
        loop {
            if let Some(key) = devices.vapid_key().await? {
                return Ok(BASE64URL.encode(key));
            }
            if !std::mem::replace(&mut told, true) {
                info!("waiting until a push process has recorded the VAPID key");
            }
            tokio::time::sleep(WAIT_INTERVAL).await;
        }
    };
    tokio::time::timeout(WAIT_MAX, recorded)
        .await
        .unwrap_or(Err(Error::VapidKeyUnknown))
}

#[cfg(test)]
mod tests {
    use herald_runtime::config::Secret;
    use herald_store::embedded::{self, Embedded};

    use super::*;

    fn config(byte: u8) -> Config {
        Config {
            vapid_private_key: Secret::new(BASE64URL.encode([byte; 32])),
            ..Config::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_processes_have_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&embedded::Config {
            data_dir: dir.path().into(),
            disk_free_mb_min: 0,
            ..embedded::Config::default()
        })
        .unwrap();
        let devices = store.stores().devices;

        let missing = Vapid::open_shared(&Config::default(), &*devices).await;
        assert!(matches!(missing, Err(Error::VapidKeyMissing)), "{missing:?}");
        let unknown = public_key(&Config::default(), &*devices).await;
        assert!(matches!(unknown, Err(Error::VapidKeyUnknown)), "{unknown:?}");

        let first = Vapid::open_shared(&config(1), &*devices).await.unwrap();
        let second = Vapid::open_shared(&config(1), &*devices).await.unwrap();
        assert_eq!(first.public_key(), second.public_key());
        let key = public_key(&Config::default(), &*devices).await.unwrap();
        assert_eq!(key, first.public_key_base64url());

        let other = Vapid::open_shared(&config(2), &*devices).await;
        assert!(matches!(other, Err(Error::VapidKeyDiffers)), "{other:?}");
        let other = public_key(&config(2), &*devices).await;
        assert!(matches!(other, Err(Error::VapidKeyDiffers)), "{other:?}");
        let replacing = Config {
            vapid_key_replace: true,
            ..config(2)
        };
        Vapid::open_shared(&replacing, &*devices).await.unwrap();
        let old = Vapid::open_shared(&config(1), &*devices).await;
        assert!(matches!(old, Err(Error::VapidKeyDiffers)), "{old:?}");
    }
}
