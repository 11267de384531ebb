//! Identification of the sender to push services (VAPID, RFC 8292): one key pair, and a signed token per push service.

use std::{io, path::Path, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use herald_model::time::Timestamp;
use herald_store::{Devices, ErrorKind};
use http::HeaderValue;
use moka::sync::Cache;
use p256::{
    ecdsa::{Signature, SigningKey, signature::Signer},
    elliptic_curve::rand_core::OsRng,
};
use serde::Serialize;
use tracing::warn;
use url::Url;

use super::{
    vapid_key_file::{create, file_error, key_file, parse_key, read_key_file},
    vapid_subject,
};
use crate::{Config, Error};

/// Time for which a token is reused. RFC 8292 allows 24 hours; some push services allow less.
const TOKEN_REUSE: Duration = Duration::from_hours(12);

/// Validity of a token: longer than its reuse, to allow for requests in flight and clock skew.
const TOKEN_VALIDITY: Duration = Duration::from_hours(13);

/// Limit of cached tokens, one per push service.
const TOKENS_MAX: u64 = 1_024;

/// JOSE header of the tokens.
const JOSE: &str = r#"{"typ":"JWT","alg":"ES256"}"#;

/// The VAPID key pair and its cached tokens. Clones share them.
#[derive(Clone)]
pub struct Vapid {
    inner: Arc<Inner>,
}

struct Inner {
    key: SigningKey,
    public_key: Vec<u8>,
    subject: String,
    tokens: Cache<String, HeaderValue>,
}

#[derive(Serialize)]
struct Claims<'a> {
    aud: &'a str,
    exp: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    sub: &'a str,
}

impl Vapid {
    /// Loads the key as [`load`](Self::load) does, and makes sure that it is the key that the registered Web Push devices
    /// subscribed with: their push services refuse any other. Call it before pushes and registrations start.
    ///
    /// [`Error::VapidKeyLost`] or [`Error::VapidKeyChanged`] if it is not, unless
    /// [`Config::vapid_key_replace`] is set: then the Web Push devices are unregistered.
    pub async fn open(config: &Config, data_dir: &Path, devices: &dyn Devices) -> Result<Self, Error> {
        let found = Self::find(config, data_dir)?;
        let bound = devices.vapid_key().await?;
        let is_bound = match (&found, &bound) {
            (Some(vapid), Some(bound)) => vapid.public_key() == bound,
            // Before keys were recorded, a key that was found was the right one.
            (Some(_), None) => true,
            (None, _) => false,
        };
        if !is_bound && devices.has_web_push().await? {
            if !config.vapid_key_replace {
                return Err(match found {
                    Some(_) => Error::VapidKeyChanged,
                    None => Error::VapidKeyLost(key_file(config, data_dir)),
                });
            }
            let devices_removed = devices.unregister_web_push().await?;
            warn!(
                devices_removed,
                "the VAPID key was replaced: Web Push devices unregistered, their browsers have to subscribe again"
            );
        }
        if found.is_none() && bound.is_some() {
            warn!(
                path = %key_file(config, data_dir).display(),
                "the file of the VAPID key has vanished, and a new key is made: no Web Push device was registered with the old \
                 one, so no push is lost; pages that have its public key must ask for the new one"
            );
        }
        let vapid = match found {
            Some(vapid) => vapid,
            None => Self::load(config, data_dir)?,
        };
        if bound.as_deref() != Some(vapid.public_key()) {
            match devices.set_vapid_key(vapid.public_key()).await {
                // The server starts and tells that its disk is full. The next start records the key.
                Err(error) if error.kind() == ErrorKind::Full && bound.is_none() => {
                    warn!(%error, "the VAPID key can't be recorded yet");
                }
                recorded => recorded?,
            }
        }
        Ok(vapid)
    }

    /// A new private key, as [`Config::vapid_private_key`] has it.
    pub fn generate() -> String {
        BASE64URL.encode(SigningKey::random(&mut OsRng).to_bytes())
    }

    /// Loads the key from the configuration, or else from its key file (`vapid.key` in the data directory by default).
    /// Creates the file with a new key if it does not exist.
    pub fn load(config: &Config, data_dir: &Path) -> Result<Self, Error> {
        match Self::find(config, data_dir)? {
            Some(vapid) => Ok(vapid),
            None => Ok(Self::new(create(&key_file(config, data_dir))?, config)),
        }
    }

    /// Loads the key; `None` if its file does not exist.
    fn find(config: &Config, data_dir: &Path) -> Result<Option<Self>, Error> {
        let key = if config.vapid_private_key.is_empty() {
            read_key_file(&key_file(config, data_dir))?
        } else {
            Some(parse_key(config.vapid_private_key.expose())?)
        };
        Ok(key.map(|key| Self::new(key, config)))
    }

    /// Loads the key that the configuration has, or names with `vapid_key_file`; `None` if it has neither. Creates no
    /// file.
    pub(super) fn configured(config: &Config) -> Result<Option<Self>, Error> {
        if !config.vapid_private_key.is_empty() {
            let key = parse_key(config.vapid_private_key.expose())?;
            return Ok(Some(Self::new(key, config)));
        }
        let Some(path) = &config.vapid_key_file else {
            return Ok(None);
        };
        match read_key_file(path)? {
            Some(key) => Ok(Some(Self::new(key, config))),
            None => Err(file_error(path)(io::ErrorKind::NotFound.into())),
        }
    }

    fn new(key: SigningKey, config: &Config) -> Self {
        let public_key = key.verifying_key().to_encoded_point(false).as_bytes().to_vec();
        let tokens = Cache::builder()
            .max_capacity(TOKENS_MAX)
            .time_to_live(TOKEN_REUSE)
            .build();
        Self {
            inner: Arc::new(Inner {
                key,
                public_key,
                subject: vapid_subject::normalize(&config.vapid_subject),
                tokens,
            }),
        }
    }

    /// The public key, `applicationServerKey` of browsers: an uncompressed P-256 point of 65 bytes.
    pub fn public_key(&self) -> &[u8] {
        &self.inner.public_key
    }

    /// The public key in base64url.
    pub fn public_key_base64url(&self) -> String {
        BASE64URL.encode(self.public_key())
    }

    /// The `Authorization` header of a request to an endpoint.
    pub(crate) fn authorization(&self, endpoint: &Url, now: Timestamp) -> HeaderValue {
        let audience = endpoint.origin().ascii_serialization();
        if let Some(token) = self.inner.tokens.get(&audience) {
            return token;
        }
        let token = self.sign(&audience, now);
        self.inner.tokens.insert(audience, token.clone());
        token
    }

    fn sign(&self, audience: &str, now: Timestamp) -> HeaderValue {
        let claims = Claims {
            aud: audience,
            exp: now.plus(TOKEN_VALIDITY).0 / 1_000_000,
            sub: &self.inner.subject,
        };
        // Serialising strings and a number can't fail; a push service would reject an empty token.
        let claims = serde_json::to_vec(&claims).unwrap_or_default();
        let signed = format!("{}.{}", BASE64URL.encode(JOSE), BASE64URL.encode(claims));
        let signature: Signature = self.inner.key.sign(signed.as_bytes());
        let signature = BASE64URL.encode(signature.to_bytes());
        let value = format!("vapid t={signed}.{signature}, k={}", self.public_key_base64url());
        let mut value = HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("vapid"));
        value.set_sensitive(true);
        value
    }
}

impl std::fmt::Debug for Vapid {
    /// Omits the private key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vapid")
            .field("public_key", &self.public_key_base64url())
            .finish_non_exhaustive()
    }
}

/// Checks the key that [`Vapid::load`] would load. Creates no file.
pub(crate) fn check_key(config: &Config, data_dir: &Path) -> Result<(), Error> {
    Vapid::find(config, data_dir).map(drop)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use herald_model::{Address, Device, UserKey};
    use herald_runtime::config::Secret;
    use herald_store::embedded::{self, Embedded};
    use p256::ecdsa::signature::Verifier;

    use super::*;

    fn endpoint(url: &str) -> Url {
        url.parse().unwrap()
    }

    #[test]
    fn the_key_is_created_once_with_mode_0600() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let created = Vapid::load(&Config::default(), &data).unwrap();
        let loaded = Vapid::load(&Config::default(), &data).unwrap();
        assert_eq!(created.public_key(), loaded.public_key());
        let key = data.join("vapid.key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1);

        let secret = Secret::new(fs::read_to_string(&key).unwrap());
        let given = Config {
            vapid_private_key: secret,
            ..Config::default()
        };
        let elsewhere = directory.path().join("elsewhere");
        assert_eq!(
            Vapid::load(&given, &elsewhere).unwrap().public_key(),
            created.public_key()
        );
        assert!(!elsewhere.exists());

        create(&key).unwrap();
        assert_eq!(
            Vapid::load(&Config::default(), &data).unwrap().public_key(),
            created.public_key()
        );
        fs::write(&key, "nonsense").unwrap();
        assert!(matches!(
            Vapid::load(&Config::default(), &data),
            Err(Error::VapidKey)
        ));
    }

    #[test]
    fn a_token_has_the_audience_and_a_valid_signature() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            vapid_subject: "mailto:ops@example.com".into(),
            ..Config::default()
        };
        let vapid = Vapid::load(&config, directory.path()).unwrap();
        let now = Timestamp(1_000_000_000_000_000);
        let value = vapid.authorization(&endpoint("https://push.example.com:8443/abc"), now);
        let value = value.to_str().unwrap();
        let (token, key) = value
            .strip_prefix("vapid t=")
            .unwrap()
            .split_once(", k=")
            .unwrap();
        assert_eq!(key, vapid.public_key_base64url());
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = Signature::from_slice(&BASE64URL.decode(signature).unwrap()).unwrap();
        vapid
            .inner
            .key
            .verifying_key()
            .verify(signed.as_bytes(), &signature)
            .unwrap();
        let (jose, claims) = signed.split_once('.').unwrap();
        assert_eq!(BASE64URL.decode(jose).unwrap(), JOSE.as_bytes());
        let claims: serde_json::Value = serde_json::from_slice(&BASE64URL.decode(claims).unwrap()).unwrap();
        assert_eq!(
            claims,
            serde_json::json!({
                "aud": "https://push.example.com:8443",
                "exp": 1_000_000_000 + 13 * 3600,
                "sub": "mailto:ops@example.com",
            })
        );
    }

    #[test]
    fn a_token_is_reused_for_the_same_push_service_only() {
        let directory = tempfile::tempdir().unwrap();
        let vapid = Vapid::load(&Config::default(), directory.path()).unwrap();
        let first = vapid.authorization(&endpoint("https://a.example/1"), Timestamp(0));
        let second = vapid.authorization(&endpoint("https://a.example/2"), Timestamp(1_000_000));
        let other = vapid.authorization(&endpoint("https://b.example/1"), Timestamp(0));
        assert_eq!(first, second);
        assert_ne!(first, other);
    }

    fn web_push() -> Address {
        Address::WebPush {
            endpoint: "https://push.example.com/1".into(),
            p256dh: vec![4; 65],
            auth: vec![1; 16],
        }
    }

    /// A store with a Web Push device and a webhook that were registered with the key in `directory`.
    async fn registered(directory: &Path) -> (Embedded, Vapid) {
        let store = Embedded::open(&embedded::Config {
            data_dir: directory.join("store"),
            disk_free_mb_min: 0,
            ..embedded::Config::default()
        });
        let store = store.unwrap();
        let devices = store.stores().devices;
        let vapid = Vapid::open(&Config::default(), directory, &*devices)
            .await
            .unwrap();
        let hook = Address::Webhook {
            url: "https://hooks.example.com/1".into(),
            secret: vec![1; 24],
        };
        for address in [web_push(), hook] {
            devices.register(UserKey(1), address, Timestamp(1)).await.unwrap();
        }
        (store, vapid)
    }

    #[tokio::test]
    async fn a_first_start_on_a_full_disk_records_the_key_later() {
        let directory = tempfile::tempdir().unwrap();
        for disk_free_mb_min in [1 << 34, 0] {
            let store = Embedded::open(&embedded::Config {
                data_dir: directory.path().join("store"),
                disk_free_mb_min,
                ..embedded::Config::default()
            });
            let devices = store.unwrap().stores().devices;
            let vapid = Vapid::open(&Config::default(), directory.path(), &*devices)
                .await
                .unwrap();
            let recorded = devices.vapid_key().await.unwrap();
            let expected = (disk_free_mb_min == 0).then(|| vapid.public_key().to_vec());
            assert_eq!(recorded, expected);
        }
    }

    #[tokio::test]
    async fn a_lost_key_is_refused_while_web_push_devices_are_registered() {
        let directory = tempfile::tempdir().unwrap();
        let (store, vapid) = registered(directory.path()).await;
        let devices = store.stores().devices;
        let open = async |config: Config| Vapid::open(&config, directory.path(), &*devices).await;
        let again = open(Config::default()).await.unwrap();
        assert_eq!(again.public_key(), vapid.public_key());

        let file = directory.path().join("vapid.key");
        fs::rename(&file, directory.path().join("backup")).unwrap();
        let error = open(Config::default()).await.unwrap_err();
        assert!(
            matches!(&error, Error::VapidKeyLost(path) if *path == file),
            "{error}"
        );
        assert!(error.to_string().contains("push.vapid_key_replace"), "{error}");
        assert!(!file.exists(), "no key is created beside the error");

        fs::rename(directory.path().join("backup"), &file).unwrap();
        open(Config::default()).await.unwrap();
        fs::remove_file(&file).unwrap();
        let replace = Config {
            vapid_key_replace: true,
            ..Config::default()
        };
        let replaced = open(replace).await.unwrap();
        assert_ne!(replaced.public_key(), vapid.public_key());
        let left = devices.of(&[UserKey(1)]).await.unwrap().remove(0);
        assert!(matches!(
            &left[..],
            [Device {
                address: Address::Webhook { .. },
                ..
            }]
        ));
        open(Config::default()).await.unwrap();
    }

    #[tokio::test]
    async fn another_key_is_refused_while_web_push_devices_are_registered() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = registered(directory.path()).await;
        let devices = store.stores().devices;
        let other = Config {
            vapid_private_key: Secret::new(BASE64URL.encode([7; 32])),
            ..Config::default()
        };
        let open = async || Vapid::open(&other, directory.path(), &*devices).await;
        assert!(matches!(open().await, Err(Error::VapidKeyChanged)));
        // Without a Web Push device, any key will do.
        devices.unregister_web_push().await.unwrap();
        let vapid = open().await.unwrap();
        assert_eq!(
            devices.vapid_key().await.unwrap().as_deref(),
            Some(vapid.public_key())
        );
    }

    #[tokio::test]
    async fn a_store_from_before_keys_were_recorded_accepts_a_key_but_not_its_loss() {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(&embedded::Config {
            data_dir: directory.path().join("store"),
            disk_free_mb_min: 0,
            ..embedded::Config::default()
        });
        let devices = store.unwrap().stores().devices;
        devices
            .register(UserKey(1), web_push(), Timestamp(1))
            .await
            .unwrap();
        let open = async || Vapid::open(&Config::default(), directory.path(), &*devices).await;
        assert!(matches!(open().await, Err(Error::VapidKeyLost(_))));
        let vapid = Vapid::load(&Config::default(), directory.path()).unwrap();
        open().await.unwrap();
        assert_eq!(
            devices.vapid_key().await.unwrap().as_deref(),
            Some(vapid.public_key())
        );
    }
}
