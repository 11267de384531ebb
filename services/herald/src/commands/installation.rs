//! Which installation a command works on that needs no running server: a data directory, or NATS and a database.

use std::path::{Path, PathBuf};

use clap::ValueHint;
use herald_cli::failure::Failure;
use herald_runtime::config::Flags;

use crate::{doctor::MeshFlags, server::Config, settings::refuse_password};

/// The installation of `herald backup`, `herald restore` and `herald recover`.
#[derive(Debug, clap::Args)]
pub(super) struct Installation {
    /// The data directory of `herald up` [default: ./herald-data]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,

    /// The NATS server of `herald serve`, nats://HOST:PORT; separate the servers of a cluster by commas [default: the one
    /// of the data directory]
    ///
    /// Its user must be allowed to create, copy and delete streams and consumers.
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,

    /// The PostgreSQL database of `herald serve`, postgres://HOST:PORT/DATABASE [default: the store in the data directory]
    ///
    /// A URL with a password must come from HERALD_STORE__URL, from the file that HERALD_STORE__URL_FILE names, or from
    /// the configuration file.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

/// The store of an installation, for a command that needs no NATS server.
#[derive(Debug, clap::Args)]
pub(super) struct StoreInstallation {
    /// The data directory of `herald up` [default: ./herald-data]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,

    /// The PostgreSQL database of `herald serve`, postgres://HOST:PORT/DATABASE [default: the store in the data directory]
    ///
    /// A URL with a password must come from HERALD_STORE__URL, from the file that HERALD_STORE__URL_FILE names, or from
    /// the configuration file.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

impl StoreInstallation {
    /// The configuration, with the flags on top. `file`: that of `--config`.
    ///
    /// # Errors
    /// An invalid setting, or a password in a flag.
    pub(super) fn config(&self, file: Option<&Path>) -> Result<Config, Failure> {
        refuse_password("--store", "HERALD_STORE__URL", self.store.as_deref())?;
        let flags = Flags::new()
            .set("data_dir", self.data_dir.as_ref())
            .set("store.url", self.store.as_ref());
        Config::load(file, flags).map_err(|error| Failure::usage(error.to_string()))
    }
}

impl Installation {
    /// The flags that name this installation to other commands that are run in the same place.
    pub(super) fn mesh_flags(&self, config: &Config) -> MeshFlags {
        if config.nats.is_child() {
            let dir = format!(" --data-dir {}", quoted(&config.data_dir.display().to_string()));
            return MeshFlags {
                nats: dir.clone(),
                whole: dir,
            };
        }
        let of = |flag, value: &Option<String>| match value {
            Some(value) => format!(" {flag} {}", quoted(value)),
            None => String::new(),
        };
        let nats = of("--nats-url", &self.nats_url);
        MeshFlags {
            whole: nats.clone() + &of("--store", &self.store),
            nats,
        }
    }

    /// The configuration, with the flags on top. `file`: that of `--config`.
    ///
    /// # Errors
    /// An invalid setting, a password in a flag, or a database without the NATS server of its processes.
    pub(super) fn config(&self, file: Option<&Path>) -> Result<Config, Failure> {
        refuse_password("--nats-url", "HERALD_NATS__URL", self.nats_url.as_deref())?;
        refuse_password("--store", "HERALD_STORE__URL", self.store.as_deref())?;
        let flags = Flags::new()
            .set("data_dir", self.data_dir.as_ref())
            .set("nats.url", self.nats_url.as_ref())
            .set("store.url", self.store.as_ref());
        let config = Config::load(file, flags).map_err(|error| Failure::usage(error.to_string()))?;
        if config.store.is_cluster() && config.nats.is_child() {
            return Err(Failure::usage(
                "nats.url must be set: the NATS server of the processes that share the store (--nats-url, HERALD_NATS__URL, \
                 or HERALD_NATS__URL_FILE)",
            ));
        }
        Ok(config)
    }
}

/// A value as a shell reads it.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,@+=".contains(c);
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.into();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_for_a_shell() {
        for (value, quoted_value) in [
            ("a/b-c", "a/b-c"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(value), quoted_value);
        }
    }
}
