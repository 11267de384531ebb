//! Checks that a store and the POSTS stream belong together.

use herald_mesh::{Mesh, streams};
use herald_store::Posts;

/// Why a service that reads or writes posts can't start.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The store was filled from another POSTS stream, so new posts would reuse the ids of archived posts.
    #[error(
        "the POSTS stream ends at {stream_last} but the store holds post {store_last}: the stream lost its newest \
         messages, or the store belongs to another stream, and new posts would reuse the ids of archived posts; start \
         with the NATS server that belongs to this store, or, if this is the one, stop all processes of Herald and run \
         `herald recover`: it tells what is lost and goes on with new ids"
    )]
    ForeignStore {
        /// Last sequence number of POSTS.
        stream_last: u64,
        /// Greatest id of an archived post.
        store_last: u64,
    },
    /// The last archived post can't be read.
    #[error("the last archived post can't be read")]
    Store(#[from] herald_store::Error),
    /// The end of POSTS can't be read.
    #[error("the end of stream POSTS can't be read")]
    Mesh(#[from] herald_mesh::Error),
}

/// Refuses a POSTS stream that ends before the last archived post. Post ids are sequence numbers of POSTS, so new posts
/// would reuse ids.
///
/// # Errors
/// [`StreamError::ForeignStore`] if it does; another [`StreamError`] if that can't be read.
pub async fn check_stream_matches_store(mesh: &Mesh, posts: &dyn Posts) -> Result<(), StreamError> {
    // The store first: posts that are archived in between are in the stream already.
    let Some(store_last) = posts.last().await? else {
        return Ok(());
    };
    let stream_last = mesh.last_sequence(streams::POSTS).await?;
    if stream_last < store_last.0 {
        return Err(StreamError::ForeignStore {
            stream_last,
            store_last: store_last.0,
        });
    }
    Ok(())
}
