//! Makes a principal of a call's credential.

use std::{future, sync::Arc};

use herald_model::time::Timestamp;
use http::HeaderMap;

use crate::{
    Config, Denied, Keyring, Lifetime, Metrics, Principal,
    api_key::{ApiKeyToken, hash},
    bearer,
    jwt::Verifier,
};

/// Why authentication can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of authorities can't be used.
    #[error("auth.jwt.ca_file: {0}")]
    AuthorityFile(String),
    /// The HTTP client can't be made.
    #[error("can't make the client of auth.jwt.jwks_url")]
    Client(#[source] reqwest::Error),
}

/// A caller whose credential is valid.
#[derive(Debug, Clone)]
pub struct Authenticated {
    /// Who it is.
    pub principal: Arc<Principal>,
    /// How long the credential stays valid.
    pub lifetime: Lifetime,
}

/// Authenticates calls. It needs neither the store nor the issuer at a call, but what was read of them before.
pub struct Authenticator {
    keyring: Keyring,
    /// `None` if no tokens are accepted.
    tokens: Option<Verifier>,
}

impl Authenticator {
    /// Sets up authentication; [`run`](Self::run) must run beside it, and something must [set](Keyring::set) the keys.
    pub fn new(config: &Config, metrics: Metrics) -> Result<Self, Error> {
        let tokens = config
            .jwt
            .is_enabled()
            .then(|| Verifier::new(&config.jwt, metrics))
            .transpose()?;
        Ok(Self {
            keyring: Keyring::new(&config.root_key),
            tokens,
        })
    }

    /// The API keys that are known.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// The caller, from the headers of a call.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Authenticated, Denied> {
        let credential = bearer::credential(headers)?;
        if let Some(root) = self.keyring.check_root(credential) {
            return Ok(root);
        }
        if let Some(token) = ApiKeyToken::parse(credential) {
            return self.keyring.check(&token, Timestamp::now());
        }
        match &self.tokens {
            Some(tokens) => tokens.verify(credential, hash(credential.as_bytes())).await,
            None => Err(Denied::Invalid),
        }
    }

    /// Keeps the issuer's keys fresh, until the future is dropped.
    pub async fn run(&self) {
        match &self.tokens {
            Some(tokens) => tokens.run().await,
            None => future::pending().await,
        }
    }
}
