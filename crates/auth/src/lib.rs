//! Who calls, and what they may do.
//!
//! A caller shows a credential in the header `authorization: Bearer …`: an API key of the store, the root key of the
//! configuration, or a JWT of an OIDC issuer. [`Authenticator`] makes a [`Principal`] of it. [`rule`] says for each method
//! which [`Scope`] it needs, and what a principal that acts for one user only may ask of it.
//!
//! | module | what is in it |
//! |---|---|
//! | `bearer` | the credential in the headers |
//! | `api_key` | the format of API keys |
//! | `keyring` | the root key, and the API keys that a gateway knows |
//! | `lifetime` | when a credential ends |
//! | `jwt` | tokens: verification, the keys of the issuer, the claims |
//! | `rules` | the table of methods |

mod api_key;
mod authenticator;
mod bearer;
mod config;
mod jwt;
mod keyring;
mod lifetime;
mod metrics;
mod principal;
mod rules;

pub use api_key::NewApiKey;
pub use authenticator::{Authenticated, Authenticator, Error};
pub use config::{Algorithm, Config, JwtConfig};
pub use herald_model::{ApiKey, ApiKeyId, Scope, Scopes};
pub use keyring::Keyring;
pub use lifetime::Lifetime;
pub use metrics::Metrics;
pub use principal::{Denied, Principal, ROOT};
pub use rules::{Bound, IsOwn, Rule, is_health, rule};
