//! Reads posts, whether they are archived yet or not.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use herald_failure::{Classify, FailureClass};
use herald_mesh::{Mesh, Subject, streams};
use herald_model::{Post, PostId};
use herald_store::{Archived, Posts};

use crate::entry;

/// Posts read from the stream at the same time.
const STREAM_READS: usize = 16;

/// Why posts could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The archive failed.
    #[error("the archive could not be read")]
    Store(#[from] herald_store::Error),
    /// The POSTS stream failed.
    #[error("the POSTS stream could not be read")]
    Mesh(#[from] herald_mesh::Error),
}

impl Classify for ReadError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Mesh(error) => error.class(),
        }
    }
}

/// Reads posts from the archive, and from the POSTS stream those that the archive doesn't have yet.
#[derive(Clone)]
pub struct PostReader {
    posts: Arc<dyn Posts>,
    mesh: Mesh,
}

impl PostReader {
    /// Reads from this archive and from the POSTS stream of this mesh.
    pub fn new(posts: Arc<dyn Posts>, mesh: Mesh) -> Self {
        Self { posts, mesh }
    }

    /// The posts, deleted ones included (see [`Post::deleted_at`]); `None` for one that never was.
    pub async fn read(&self, ids: &[PostId]) -> Result<Vec<Option<Post>>, ReadError> {
        let mut posts = self.posts.get(ids).await?;
        let missing = posts
            .iter()
            .zip(ids)
            .enumerate()
            .filter(|(_, (post, _))| post.is_none());
        let missing: Vec<_> = missing.map(|(index, (_, id))| (index, *id)).collect();
        if missing.is_empty() {
            return Ok(posts);
        }
        let found: Vec<_> = stream::iter(missing)
            .map(|(index, id)| async move { Ok::<_, ReadError>((index, self.read_stream(id).await?)) })
            .buffer_unordered(STREAM_READS)
            .try_collect()
            .await?;
        for (index, post) in found {
            posts[index] = post;
        }
        Ok(posts)
    }

    /// One post, as [`read`](Self::read).
    pub async fn read_one(&self, id: PostId) -> Result<Option<Post>, ReadError> {
        Ok(self.read(&[id]).await?.into_iter().next().flatten())
    }

    /// Whether the archive shows a post as deleted.
    pub async fn is_deleted(&self, id: PostId) -> Result<bool, ReadError> {
        let posts = self.posts.get(&[id]).await?;
        Ok(posts.into_iter().flatten().any(|post| post.deleted_at.is_some()))
    }

    async fn read_stream(&self, id: PostId) -> Result<Option<Post>, ReadError> {
        if id.0 == 0 {
            return Ok(None);
        }
        let Some(message) = self.mesh.message(streams::POSTS, id.0).await? else {
            return Ok(None);
        };
        let Some(subject) = Subject::parse(&message.subject) else {
            return Ok(None);
        };
        match entry(subject, id.0, message.payload) {
            Ok(Archived::Created(post)) => Ok(Some(post)),
            // A sequence number can be a deletion's; that is no post.
            Ok(Archived::Deleted { .. }) => Ok(None),
            Err(reason) => {
                tracing::warn!(post_id = id.0, reason, "a message in POSTS is no post");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_store::{Error, ErrorKind};

    use super::*;

    #[test]
    fn the_class_is_that_of_the_cause() {
        let of = |kind| ReadError::from(Error::new(kind, "failed")).class();
        assert_eq!(of(ErrorKind::Unavailable), FailureClass::Transient);
        assert_eq!(of(ErrorKind::Corrupt), FailureClass::Permanent);
    }
}
