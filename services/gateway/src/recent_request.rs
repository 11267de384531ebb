//! Finds out whether a request was accepted before, up to this moment.
//!
//! To accept a post, the gateway needs to know only that the archive has no post with its request: the broker detects a
//! request that was accepted after the last reading of the archive. To refuse a post, the gateway must know that it is
//! not the repetition of one that was accepted a moment ago.

use std::pin::pin;

use futures::TryStreamExt as _;
use herald_mesh::{Mesh, consumers, streams};
use herald_model::{PostId, UserId, UserKey};
use herald_proto::mesh_v1::PostCreated;
use herald_store::Posts;

/// Subjects of accepted posts.
const CREATED: &str = "post.v1.created.*";
/// Maximum number of messages of POSTS that are read: an archive that is farther behind can't answer.
const MESSAGES_MAX: u64 = 10_000;

/// Finds the post of a request among all that were accepted before the call.
///
/// # Errors
/// The store or the broker is away, or the archive is too far behind to tell.
pub(crate) async fn find(
    mesh: &Mesh,
    posts: &dyn Posts,
    author: (&UserId, UserKey),
    request_id: &str,
) -> Result<Option<PostId>, String> {
    let (author_id, author) = author;
    let last = mesh.last_sequence(streams::POSTS).await.map_err(text)?;
    let floor = mesh
        .ack_floor(streams::POSTS, consumers::ARCHIVE)
        .await
        .map_err(text)?;
    // The archive has all posts up to the ack floor.
    let stored = posts.find_by_request(author, request_id).await.map_err(text)?;
    if stored.is_some() || floor >= last {
        return Ok(stored);
    }
    if last - floor > MESSAGES_MAX {
        return Err(format!("the archive is {} messages behind POSTS", last - floor));
    }
    let mut messages = pin!(mesh.scan(streams::POSTS, Some(CREATED), floor + 1, last));
    while let Some(message) = messages.try_next().await.map_err(text)? {
        // The archive terminates a message that can't be decoded.
        if let Ok(post) = message.decode::<PostCreated>()
            && post.author_id == author_id.as_str()
            && post.request_id == request_id
        {
            return Ok(Some(PostId(message.sequence)));
        }
    }
    Ok(None)
}

fn text(error: impl std::error::Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use herald_local_nats::Server;
    use herald_mesh::{Config, Subject, Topology, TopologyConfig};
    use herald_model::Lane;
    use herald_store::{
        Archived,
        embedded::{self, Embedded},
    };

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_is_found_before_and_after_it_is_archived() {
        let server = Server::start(herald_local_nats::Config::default()).await.unwrap();
        let mesh = Mesh::connect(&Config::at(server.client_url())).await.unwrap();
        let topology = Topology::new(&TopologyConfig::default()).unwrap();
        mesh.ensure(&topology).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&embedded::Config {
            data_dir: dir.path().into(),
            ..embedded::Config::default()
        });
        let posts = store.unwrap().stores().posts;
        let author = UserId::new("107").unwrap();
        let find = async |request_id: &str| find(&mesh, &*posts, (&author, UserKey(1)), request_id).await;
        assert_eq!(find("first").await, Ok(None));
        let subject = Subject::PostCreated(Lane::Low);
        for (author_id, request_id) in [("108", "first"), ("107", "first"), ("107", "second")] {
            let post = PostCreated {
                author_key: 1,
                author_id: author_id.into(),
                request_id: request_id.into(),
                ..PostCreated::default()
            };
            mesh.publish(subject, None, &post).await.unwrap();
        }
        for archived in [false, true] {
            if archived {
                let message = mesh.message(streams::POSTS, 3).await.unwrap().unwrap();
                let entry = herald_posts::entry(subject, 3, message.payload).unwrap();
                assert!(matches!(entry, Archived::Created(_)));
                posts.archive(&[entry]).await.unwrap();
            }
            assert_eq!(find("first").await, Ok(Some(PostId(2))));
            assert_eq!(find("second").await, Ok(Some(PostId(3))));
            assert_eq!(find("third").await, Ok(None));
        }
    }
}
