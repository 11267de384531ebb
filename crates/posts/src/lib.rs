//! Posts, from the archive or from the POSTS stream: what a message of POSTS says ([`entry`]), and how a post is read whether
//! it is archived yet or not ([`PostReader`]).

mod entry;
mod reader;

pub use entry::entry;
pub use reader::{PostReader, ReadError};
