//! Reads posts from the archive or, before they are archived, from the POSTS stream ([`PostReader`]), and decodes the
//! messages of POSTS ([`entry`]), whose authors may have to be looked up ([`resolve_authors`]).
//! [`check_stream_matches_store`] checks that store and stream belong together.

mod author;
mod entry;
mod reader;
mod stream;

pub use author::{NO_KEY, author_key, lacks_author, resolve_authors};
pub use entry::{created_message, entry, is_same_post};
pub use reader::{PostReader, ReadError};
pub use stream::{StreamError, check_stream_matches_store};
