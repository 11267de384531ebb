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

mod error;
mod loader;
mod secret;

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

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

/// Settings as TOML, secrets hidden. Settings that are unset are left out.
pub fn print<T: Serialize>(config: &T) -> Result<String, Error> {
    toml::to_string(config)
        .map_err(|error| Error::one(Layer::Defaults, "", format!("can't be printed: {error}")))
}
