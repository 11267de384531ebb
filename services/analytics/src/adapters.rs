//! The way out: Parquet files into an object store.

mod files;
mod parquet;

pub(crate) use files::Files;
pub use files::local;
pub(crate) use parquet::encode;
