//! Tokens (JWT, RFC 7519) of an OIDC issuer.

mod claims;
mod issuer_keys;
mod ring;
mod source;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Header, Validation, decode, decode_header};
use moka::sync::Cache;
use parking_lot::RwLock;
use serde_json::{Map, Value};
use tokio::{
    sync::Mutex,
    time::{Instant, MissedTickBehavior, interval},
};

use herald_model::time::Timestamp;

use crate::{Authenticated, Denied, Error, JwtConfig, Lifetime, Metrics, api_key::Hash};

use issuer_keys::IssuerKeys;
use source::Source;

/// Interval at which the issuer's keys are read.
const REFRESH_INTERVAL: Duration = Duration::from_mins(5);
/// Shortest time between two reads: tokens with invented key ids don't flood the issuer.
const REFRESH_INTERVAL_MIN: Duration = Duration::from_secs(5);
/// Interval until the keys have been read once.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of tokens whose verification is remembered.
const CACHED_TOKENS_MAX: u64 = 10_000;

type Claims = Map<String, Value>;

/// Checks that a file or answer of an issuer has keys.
///
/// # Errors
/// Says why it has none, without any part of it.
pub(crate) fn check_keys(text: &[u8]) -> Result<(), &'static str> {
    IssuerKeys::parse(text).map(drop)
}

/// Verifies tokens.
pub(crate) struct Verifier {
    config: JwtConfig,
    source: Source,
    /// `None` until they have been read.
    keys: RwLock<Option<Arc<IssuerKeys>>>,
    /// When they were read last, or could not be. Held while they are read.
    read_at: Mutex<Option<Instant>>,
    /// Tokens that were verified with the present keys, by their hash.
    verified: Cache<Hash, Verified>,
    metrics: Metrics,
}

#[derive(Clone)]
struct Verified {
    caller: Authenticated,
    /// The end of the token, seconds since 1970, leeway included.
    valid_until: u64,
}

/// Why a token isn't accepted at the first try.
enum Failure {
    /// It names a key that isn't known. The issuer may have a new one.
    UnknownKey,
    Denied,
}

/// Refuses a token. The reason is in the log alone: callers aren't told which it is.
fn refused(reason: &dyn fmt::Display) -> Denied {
    tracing::debug!(%reason, "a token is refused");
    Denied::Invalid
}

impl Verifier {
    pub(crate) fn new(config: &JwtConfig, metrics: Metrics) -> Result<Self, Error> {
        ring::install();
        Ok(Self {
            config: config.clone(),
            source: Source::new(config)?,
            keys: RwLock::default(),
            read_at: Mutex::default(),
            verified: Cache::builder()
                .max_capacity(CACHED_TOKENS_MAX)
                .time_to_live(REFRESH_INTERVAL)
                .build(),
            metrics,
        })
    }

    /// The caller with a token. `hash`: that of the token.
    pub(crate) async fn verify(&self, token: &str, hash: Hash) -> Result<Authenticated, Denied> {
        if let Some(verified) = self.verified.get(&hash) {
            return if now() < verified.valid_until {
                Ok(verified.caller)
            } else {
                Err(Denied::Invalid)
            };
        }
        // Refuses `none` and what has no header of a token.
        let header = decode_header(token).map_err(|error| refused(&error))?;
        if !self
            .config
            .algorithms
            .iter()
            .any(|allowed| allowed.of_library() == header.alg)
        {
            return Err(refused(&format_args!(
                "its algorithm, {:?}, is not in auth.jwt.algorithms",
                header.alg
            )));
        }
        match self.verify_known(token, &header, hash) {
            Err(Failure::UnknownKey) => {}
            verified => return verified.map_err(|_| Denied::Invalid),
        }
        self.refresh(REFRESH_INTERVAL_MIN).await;
        if self.keys.read().is_none() {
            return Err(Denied::Unavailable("the issuer of tokens"));
        }
        self.verify_known(token, &header, hash)
            .map_err(|failure| match failure {
                Failure::UnknownKey => refused(&format_args!(
                    "the issuer has no key {:?} for {:?}",
                    header.kid.as_deref().unwrap_or_default(),
                    header.alg
                )),
                Failure::Denied => Denied::Invalid,
            })
    }

    /// Verifies a token with the keys that are known.
    fn verify_known(&self, token: &str, header: &Header, hash: Hash) -> Result<Authenticated, Failure> {
        let keys = self.keys.read().clone().ok_or(Failure::UnknownKey)?;
        let key = keys
            .find(header.kid.as_deref(), header.alg)
            .ok_or(Failure::UnknownKey)?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = self.config.leeway_seconds;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&[&self.config.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let claims = match decode::<Claims>(token, &key.key, &validation) {
            Ok(token) => token.claims,
            Err(error) => {
                refused(&error);
                return Err(Failure::Denied);
            }
        };
        let Some(principal) = claims::principal(&self.config, &claims) else {
            refused(&format_args!(
                "its claim {:?} is no user id",
                self.config.user_claim
            ));
            return Err(Failure::Denied);
        };
        let expires_at = claims.get("exp").and_then(Value::as_f64).unwrap_or_default() as u64;
        let valid_until = expires_at.saturating_add(self.config.leeway_seconds);
        let end = Timestamp(0).plus(Duration::from_secs(valid_until));
        let caller = Authenticated {
            principal: Arc::new(principal),
            lifetime: Lifetime::new(Some(end), key.withdrawn.clone()),
        };
        let verified = Verified {
            caller: caller.clone(),
            valid_until,
        };
        // Held while the token is remembered: the keys can't change in between and leave it remembered.
        let present = self.keys.read();
        if present
            .as_ref()
            .is_some_and(|present| Arc::ptr_eq(present, &keys))
        {
            self.verified.insert(hash, verified);
        }
        Ok(caller)
    }

    /// Reads the issuer's keys, unless they were read within `age_min`. Callers at one time share a read. The keys stay if
    /// the issuer doesn't answer.
    async fn refresh(&self, age_min: Duration) {
        let mut read_at = self.read_at.lock().await;
        if read_at.is_some_and(|at| at.elapsed() < age_min) {
            return;
        }
        let read = self.source.read().await;
        *read_at = Some(Instant::now());
        self.metrics.count_jwks_read(read.is_ok());
        match read {
            Ok(text) => self.set_keys(&text),
            Err(error) => {
                tracing::warn!(%error, "can't read the keys of the issuer of tokens; those read last stay");
            }
        }
    }

    fn set_keys(&self, text: &[u8]) {
        let mut new = match IssuerKeys::parse(text) {
            Ok(keys) => keys,
            Err(error) => {
                tracing::warn!(
                    error,
                    "the keys of the issuer of tokens are not valid; those read last stay"
                );
                return;
            }
        };
        let mut keys = self.keys.write();
        if keys.as_ref().is_some_and(|keys| keys.is_same(&new)) {
            return;
        }
        tracing::info!(keys = new.len(), "read new keys of the issuer of tokens");
        if let Some(earlier) = keys.as_deref() {
            new.succeed(earlier);
        }
        *keys = Some(Arc::new(new));
        // A token of a key that is gone must not live on.
        self.verified.invalidate_all();
    }

    /// Reads the issuer's keys again and again, until the future is dropped.
    pub(crate) async fn run(&self) {
        let mut first = interval(FIRST_INTERVAL);
        first.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.keys.read().is_none() {
            first.tick().await;
            self.refresh(REFRESH_INTERVAL_MIN).await;
        }
        let mut again = interval(REFRESH_INTERVAL);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        again.tick().await;
        loop {
            again.tick().await;
            self.refresh(REFRESH_INTERVAL_MIN).await;
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
