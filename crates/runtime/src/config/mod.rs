//! Settings, merged from four layers; a later layer overrides an earlier one: defaults < file < environment < flags.
//!
//! - The defaults are `T::default()`.
//! - The file is TOML.
//! - The environment layer has all variables `HERALD_…`; `__` separates the levels: `HERALD_NATS__URL` sets `nats.url`.
//!   The value is parsed as TOML unless the setting is a string: `HERALD_PUSH__ENABLED=false`,
//!   `HERALD_NATS__URLS=[a, b]`.
//! - Flags are set on the command line.
//!
//! A secret can be in a file of its own: in the TOML file and in the environment, a key that ends in `_file` and is not a
//! setting names the file that has the value of the setting without that ending. `HERALD_NATS__PASSWORD_FILE=/run/pass`
//! reads `nats.password` from `/run/pass`. A newline at the end is not part of the value.
//!
//! An unknown key is an error in every layer. An error contains the layer, the key, what is expected in
//! words, and the value unless it could be a secret. The error of a file that is not TOML contains no text of the file.
//!
//! ```
//! use herald_runtime::config::{Loader, Secret};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, Default, Serialize, Deserialize)]
//! #[serde(default)]
//! struct Config {
//!     threads: u32,
//!     password: Secret,
//! }
//!
//! let config: Config = Loader::defaults()
//!     .env([("HERALD_PASSWORD", "1234")])
//!     .flag("threads", Some(4))
//!     .load()?;
//! assert_eq!((config.threads, config.password.expose()), (4, "1234"));
//! assert_eq!(herald_runtime::config::print(&config)?, "password = \"[hidden]\"\nthreads = 4\n");
//! # Ok::<(), herald_runtime::config::Error>(())
//! ```

mod bounds;
mod error;
mod expected;
mod loader;
mod not_toml;
mod open_files;
#[cfg(test)]
mod tests;
mod value_files;
mod variables;

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use bounds::check_bounds;
pub use error::{Error, Layer, Problem};
pub use herald_secret::{Secret, SecretUrl, password as hide_password};
pub use loader::{Flags, Loader, RESERVED};

/// Loads settings from the defaults, the file if given, the environment of the process, and the flags.
pub fn load<T>(file: Option<&Path>, flags: Flags) -> Result<T, Error>
where
    T: Default + Serialize + DeserializeOwned,
{
    Loader::new().file(file).flags(flags).load()
}

/// Prints settings as TOML. Redacts secrets and the credentials in URLs; omits unset settings.
pub fn print<T: Serialize>(config: &T) -> Result<String, Error> {
    let failed = |error: toml::ser::Error| Error::one(Layer::All, "", format!("can't be printed: {error}"));
    let mut table = toml::Value::try_from(config).map_err(failed)?;
    redact_passwords(&mut table);
    toml::to_string(&table).map_err(failed)
}

fn redact_passwords(value: &mut toml::Value) {
    match value {
        toml::Value::String(text) => {
            if let Some(redacted) = herald_secret::password(text) {
                *text = redacted;
            }
        }
        toml::Value::Array(values) => values.iter_mut().for_each(redact_passwords),
        toml::Value::Table(values) => values.iter_mut().for_each(|(_, value)| redact_passwords(value)),
        _ => {}
    }
}
