//! Reads posts from the archive or, before they are archived, from the POSTS stream ([`PostReader`]), and decodes the
//! messages of POSTS ([`entry`]).

mod entry;
mod reader;

pub use entry::entry;
pub use reader::{PostReader, ReadError};
