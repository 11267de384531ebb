//! The search for a nats-server.

use std::path::Path;

use crate::binary::Binary;
use crate::command::Cancel;
use crate::error::{Error, Result};
use crate::fetch;
use crate::locate::{BinarySource, Locate};

impl Binary {
    /// Finds a nats-server. Searches [`Locate::explicit`], `$NATS_SERVER`, the PATH and the cache, in this order, then
    /// fetches one into the cache. Concurrent searches, also of other processes, fetch only once.
    ///
    /// A named server (explicit or `$NATS_SERVER`) that is missing or too old is an error. A server on the PATH that is
    /// too old, as in some distributions, is skipped with a warning.
    pub async fn locate(locate: Locate) -> Result<Self> {
        let cancel = Cancel::default();
        let _guard = cancel.on_drop();
        tokio::task::spawn_blocking(move || Self::locate_blocking(&locate, &cancel))
            .await
            .map_err(|error| Error::Io {
                action: "search for a nats-server".into(),
                source: error.into(),
            })?
    }

    fn locate_blocking(locate: &Locate, cancel: &Cancel) -> Result<Self> {
        if let Some(path) = &locate.explicit {
            return Self::named(path, BinarySource::Explicit, cancel);
        }
        if let Some(path) = &locate.environment {
            return Self::named(path, BinarySource::Environment, cancel);
        }
        if let Some(found) = Self::on_path(locate, cancel)? {
            return Ok(found);
        }
        let Some(cache) = &locate.cache else {
            return Err(Error::Unavailable { attempts: Vec::new() });
        };
        match fetch::cached(cache, cancel)? {
            Some(found) => Ok(found),
            None => fetch::fetch(locate, cache, cancel),
        }
    }

    fn named(path: &Path, origin: BinarySource, cancel: &Cancel) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::Missing {
                path: path.into(),
                origin,
            });
        }
        Self::check(path, origin, cancel)
    }

    fn on_path(locate: &Locate, cancel: &Cancel) -> Result<Option<Self>> {
        for dir in locate.path.iter().flat_map(std::env::split_paths) {
            // An empty entry means the current directory, which is not searched.
            let path = dir.join("nats-server");
            if dir.as_os_str().is_empty() || !path.is_file() {
                continue;
            }
            match Self::check(&path, BinarySource::Path, cancel) {
                Ok(found) => return Ok(Some(found)),
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(error) => tracing::warn!(%error, "skipped a nats-server on the PATH"),
            }
        }
        Ok(None)
    }
}
