//! Reads posts from the archive, or from POSTS before they are archived.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use herald_failure::{Classify, FailureClass};
use herald_mesh::{Mesh, Subject, streams};
use herald_model::{Post, PostId};
use herald_store::{Archived, Posts, Users};

use crate::{author_key, entry};

/// Maximum number of concurrent reads from the stream.
const STREAM_READS: usize = 16;

/// Why posts can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The archive can't be read.
    #[error("archive can't be read")]
    Store(#[from] herald_store::Error),
    /// The POSTS stream can't be read.
    #[error("stream POSTS can't be read")]
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

/// Reads posts from the archive, and posts that aren't archived yet from the POSTS stream.
#[derive(Clone)]
pub struct PostReader {
    users: Arc<dyn Users>,
    posts: Arc<dyn Posts>,
    mesh: Mesh,
}

impl PostReader {
    /// A reader of this archive and of the POSTS stream of this mesh.
    pub fn new(users: Arc<dyn Users>, posts: Arc<dyn Posts>, mesh: Mesh) -> Self {
        Self { users, posts, mesh }
    }

    /// Reads posts, in the order of `ids`, deleted posts included (see [`Post::deleted_at`]); `None` for an id that is
    /// not a post. A deletion that isn't archived yet is not visible.
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
            .map(|(index, id)| async move {
                let mut post = self.read_stream(id).await?;
                if let Some(post) = &mut post {
                    post.author = author_key(&*self.users, post.author, &post.author_id).await?;
                }
                Ok::<_, ReadError>((index, post))
            })
            .buffer_unordered(STREAM_READS)
            .try_collect()
            .await?;
        for (index, post) in found {
            posts[index] = post;
        }
        Ok(posts)
    }

    /// Reads one post, as [`read`](Self::read) does.
    pub async fn read_one(&self, id: PostId) -> Result<Option<Post>, ReadError> {
        Ok(self.read(&[id]).await?.into_iter().next().flatten())
    }

    /// Reads an accepted post from the POSTS stream alone, without its deletion; `None` for an id that is not a post, or
    /// that POSTS does not retain any more. Needs no store, so the key of the author can be
    /// [`NO_KEY`](crate::NO_KEY).
    pub async fn read_accepted(&self, id: PostId) -> Result<Option<Post>, ReadError> {
        self.read_stream(id).await
    }

    /// Whether the archive has the post's deletion.
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
            // The sequence of a deletion is not a post id.
            Ok(Archived::Deleted { .. }) => Ok(None),
            Err(reason) => {
                tracing::warn!(post_id = id.0, reason, "message in POSTS can't be decoded");
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
    fn a_read_error_has_the_class_of_its_source() {
        let class = |kind| ReadError::from(Error::new(kind, "failed")).class();
        assert_eq!(class(ErrorKind::Unavailable), FailureClass::Transient);
        assert_eq!(class(ErrorKind::Corrupt), FailureClass::Permanent);
    }
}
