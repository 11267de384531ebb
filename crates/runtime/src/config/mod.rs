//! Settings from four layers, the later over the earlier: defaults < file < environment < flags.
//!
//! - The defaults are `T::default()`.
//! - The file is TOML.
//! - The environment is every variable `HERALD_…`, nested by `__`: `HERALD_NATS__URL` is `nats.url`. Values are read as
//!   TOML values where the setting isn't a string: `HERALD_PUSH__ENABLED=false`, `HERALD_NATS__URLS=[a, b]`.
//! - Flags are what the command line says about a key.
//!
//! A key that no setting has is an error in every layer, and errors say the layer, the key and what is expected there.
//!
//! ```
//! use herald_runtime::config::{Loader, Secret};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, Default, Serialize, Deserialize)]
//! #[serde(default)]
//! struct Config {
//!     threads: u32,
//!     token: Secret,
//! }
//!
//! let config: Config = Loader::bare()
//!     .env([("HERALD_TOKEN", "1234")])
//!     .flag("threads", Some(4))
//!     .load()?;
//! assert_eq!((config.threads, config.token.expose()), (4, "1234"));
//! assert_eq!(herald_runtime::config::print(&config)?, "threads = 4\ntoken = \"[hidden]\"\n");
//! # Ok::<(), herald_runtime::config::Error>(())
//! ```

mod bounds;
mod error;
mod loader;
mod secret;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use bounds::within;
pub use error::{Error, Layer, Problem};
pub use loader::{Flags, Loader, RESERVED};
pub use secret::Secret;

/// Loads settings from the defaults, a file if one is given, the process's environment, and flags.
pub fn load<T>(file: Option<&Path>, flags: Flags) -> Result<T, Error>
where
    T: Default + Serialize + DeserializeOwned,
{
    Loader::new().file(file).flags(flags).load()
}

/// Settings as TOML, secrets and the passwords of URLs hidden. Settings that are unset are left out.
pub fn print<T: Serialize>(config: &T) -> Result<String, Error> {
    let failed = |error: toml::ser::Error| Error::one(Layer::All, "", format!("can't be printed: {error}"));
    let mut table = toml::Value::try_from(config).map_err(failed)?;
    hide_passwords(&mut table);
    toml::to_string(&table).map_err(failed)
}

fn hide_passwords(value: &mut toml::Value) {
    match value {
        toml::Value::String(text) => {
            if let Some(hidden) = without_password(text) {
                *text = hidden;
            }
        }
        toml::Value::Array(values) => values.iter_mut().for_each(hide_passwords),
        toml::Value::Table(values) => values.iter_mut().for_each(|(_, value)| hide_passwords(value)),
        _ => {}
    }
}

/// `nats://user:password@host` without the password, and `nats://token@host` without the token; `None` for what has
/// neither.
fn without_password(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (credentials, _) = rest[..authority_end].rsplit_once('@')?;
    let host = &rest[credentials.len()..];
    Some(match credentials.split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:[hidden]{host}"),
        None => format!("{scheme}://[hidden]{host}"),
    })
}
