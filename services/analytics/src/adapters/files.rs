//! The object store that the files go to.

use std::path::Path as FsPath;
use std::sync::Arc;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, Result};

/// A local folder, made when it isn't there. A file is whole and on the disk when its write returns.
pub fn local(dir: &FsPath) -> Result<Arc<dyn ObjectStore>> {
    std::fs::create_dir_all(dir).map_err(|error| Error::Generic {
        store: "LocalFileSystem",
        source: Box::new(error),
    })?;
    Ok(Arc::new(LocalFileSystem::new_with_prefix(dir)?.with_fsync(true)))
}

/// Files by path.
#[derive(Debug, Clone)]
pub(crate) struct Files(Arc<dyn ObjectStore>);

impl Files {
    pub(crate) fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self(objects)
    }

    /// Writes a file, over the one that is there.
    pub(crate) async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.0.put(&Path::parse(path)?, bytes.into()).await?;
        Ok(())
    }

    /// Deletes a file if it is there.
    pub(crate) async fn delete(&self, path: &str) -> Result<()> {
        match self.0.delete(&Path::parse(path)?).await {
            Err(Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}
