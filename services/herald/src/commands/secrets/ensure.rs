//! Makes what is missing of the Secrets of a specification.

use std::{collections::BTreeMap, time::Duration};

use herald_cli::failure::{Failure, Kind as FailureKind};
use rand::Rng as _;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    kubernetes::{Api, Error as ApiError, Stored},
    spec::{Entry, Kind, Reference, Secret, Spec},
    value,
};

/// Delays between attempts while the API server is away.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Attempts at a Secret that others change at the same time.
const CONFLICTS_MAX: u32 = 20;

/// What was done with a Secret.
#[derive(Debug, Serialize)]
pub(super) struct Ensured {
    pub(super) name: String,
    pub(super) change: Change,
    /// The keys that were made.
    pub(super) keys: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Change {
    Created,
    Changed,
    Unchanged,
}

/// Why the Secrets are not complete.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("{error}; gave up after {waited} s")]
    GaveUp { error: ApiError, waited: u64 },
    #[error("secret {secret}: key {key} {reason}")]
    Value {
        secret: String,
        key: String,
        reason: String,
    },
}

impl Error {
    pub(super) fn failure(&self) -> Failure {
        let kind = match self {
            Self::GaveUp { .. } => FailureKind::Unreachable,
            Self::Api(_) | Self::Value { .. } => FailureKind::Failed,
        };
        Failure::new(kind, self.to_string())
    }
}

/// The seeds that public keys follow.
type Seeds = BTreeMap<Reference, Vec<u8>>;

/// Ensures all Secrets. Tries again for `limit` while the API server is away.
pub(super) async fn run(api: &Api, spec: &Spec, limit: Duration) -> Result<Vec<Ensured>, Error> {
    let until = Instant::now() + limit;
    let mut seeds = Seeds::new();
    let mut ensured = Vec::new();
    // Seeds come before what follows from them. A specification lets a Secret have both.
    let (later, first): (Vec<_>, Vec<_>) = spec.secrets.iter().partition(|secret| secret.follows());
    for secret in first.into_iter().chain(later) {
        ensured.push(Box::pin(ensure(api, spec, secret, &mut seeds, (until, limit))).await?);
    }
    Ok(ensured)
}

async fn ensure(
    api: &Api,
    spec: &Spec,
    secret: &Secret,
    seeds: &mut Seeds,
    (until, limit): (Instant, Duration),
) -> Result<Ensured, Error> {
    let (mut conflicts, mut delay) = (0, RETRY_MIN);
    loop {
        let error = match attempt(api, spec, secret, seeds).await {
            Err(Error::Api(error)) => error,
            done => return done,
        };
        match error {
            // Another run was faster: read again what it has made.
            ApiError::Conflict(_) if conflicts < CONFLICTS_MAX => {
                conflicts += 1;
                tokio::time::sleep(RETRY_MIN.mul_f64(rand::rng().random())).await;
            }
            ApiError::Away(_) if Instant::now() + delay < until => {
                tracing::warn!(%error, secret = secret.name, "trying again");
                tokio::time::sleep(delay.mul_f64(0.5 + rand::rng().random::<f64>() / 2.0)).await;
                delay = (delay * 2).min(RETRY_MAX);
            }
            ApiError::Away(_) => {
                return Err(Error::GaveUp {
                    error,
                    waited: limit.as_secs(),
                });
            }
            error => return Err(error.into()),
        }
    }
}

/// Reads a Secret and makes what is missing of it.
async fn attempt(api: &Api, spec: &Spec, secret: &Secret, seeds: &mut Seeds) -> Result<Ensured, Error> {
    let found = api.get(&secret.name).await?;
    let none = BTreeMap::new();
    let data = found.as_ref().map_or(&none, |stored| &stored.data);
    let made = missing(secret, data, seeds)?;
    let (stored, change) = match found {
        Some(stored) if made.is_empty() => (stored, Change::Unchanged),
        Some(stored) => {
            let stored = api.patch(&secret.name, &stored.version, &made).await?;
            (stored, Change::Changed)
        }
        None => {
            let stored = api
                .create(&secret.name, &spec.labels, &spec.annotations, &made)
                .await?;
            (stored, Change::Created)
        }
    };
    remember(secret, &stored, seeds);
    Ok(Ensured {
        name: secret.name.clone(),
        change,
        keys: made.into_keys().collect(),
    })
}

/// The values to set: those of absent keys, and public keys of other seeds.
fn missing(
    secret: &Secret,
    data: &BTreeMap<String, Vec<u8>>,
    seeds: &Seeds,
) -> Result<BTreeMap<String, String>, Error> {
    let mut made = BTreeMap::new();
    let failed = |entry: &Entry, reason: String| Error::Value {
        secret: secret.name.clone(),
        key: entry.key.clone(),
        reason,
    };
    for entry in &secret.entries {
        if data.contains_key(&entry.key) {
            continue;
        }
        if let Some(value) = value::generate(entry.kind) {
            let value = value.map_err(|reason| failed(entry, reason))?;
            made.insert(entry.key.clone(), value);
        }
    }
    for entry in &secret.entries {
        let Some(of) = &entry.of else { continue };
        // The seed can be in the same Secret.
        let seed = if of.secret == secret.name {
            let new = made.get(&of.key).map(String::as_bytes);
            data.get(&of.key).map(Vec::as_slice).or(new)
        } else {
            seeds.get(of).map(Vec::as_slice)
        };
        let public = seed
            .ok_or_else(|| "follows a seed that was not made".to_owned())
            .and_then(value::public_key)
            .map_err(|reason| Error::Value {
                secret: of.secret.clone(),
                key: of.key.clone(),
                reason,
            })?;
        if data.get(&entry.key).map(Vec::as_slice) != Some(public.as_bytes()) {
            made.insert(entry.key.clone(), public);
        }
    }
    Ok(made)
}

/// Keeps the seeds that the server has.
fn remember(secret: &Secret, stored: &Stored, seeds: &mut Seeds) {
    for entry in secret.entries.iter().filter(|entry| entry.kind == Kind::Nkey) {
        if let Some(seed) = stored.data.get(&entry.key) {
            let reference = Reference {
                secret: secret.name.clone(),
                key: entry.key.clone(),
            };
            seeds.insert(reference, seed.clone());
        }
    }
}
