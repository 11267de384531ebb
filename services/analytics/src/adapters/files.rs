//! The object store of the Parquet files.

use std::path::Path as FsPath;
use std::sync::Arc;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, Result};

/// Opens a local directory as object store, and creates it if it is missing. Writes are atomic and fsynced.
pub fn local(dir: &FsPath) -> Result<Arc<dyn ObjectStore>> {
    std::fs::create_dir_all(dir).map_err(|error| Error::Generic {
        store: "LocalFileSystem",
        source: Box::new(error),
    })?;
    Ok(Arc::new(LocalFileSystem::new_with_prefix(dir)?.with_fsync(true)))
}

/// Writes and deletes files by path.
#[derive(Debug, Clone)]
pub(crate) struct FileStore(Arc<dyn ObjectStore>);

impl FileStore {
    pub(crate) fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self(objects)
    }

    /// Writes a file; replaces an existing one.
    pub(crate) async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.0.put(&Path::parse(path)?, bytes.into()).await?;
        Ok(())
    }

    /// Deletes a file; succeeds if there is none.
    pub(crate) async fn delete(&self, path: &str) -> Result<()> {
        match self.0.delete(&Path::parse(path)?).await {
            Err(Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}
