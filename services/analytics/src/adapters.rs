//! Output: Parquet files in an object store.

mod files;
mod parquet;

pub(crate) use files::FileStore;
pub use files::local;
pub(crate) use parquet::encode;
