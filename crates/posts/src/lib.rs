//! Reads posts from the archive or, before they are archived, from the POSTS stream ([`PostReader`]), and decodes the
//! messages of POSTS ([`entry`]). [`check_stream_matches_store`] checks that store and stream belong together.

mod entry;
mod reader;
mod stream;

pub use entry::entry;
pub use reader::{PostReader, ReadError};
pub use stream::{StreamError, check_stream_matches_store};
