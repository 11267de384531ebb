//! What a post says: from the archive, or from the POSTS stream while the archive has not come so far.

use std::sync::Arc;

use herald_mesh::{Mesh, Subject, streams};
use herald_model::{PostId, UserId};
use herald_proto::mesh_v1::PostCreated;
use herald_store::Posts;

use crate::error::AttemptError;

/// What of a post a push needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) author_id: UserId,
    pub(crate) text: String,
    pub(crate) links: Vec<String>,
}

/// Where posts are read.
#[derive(Clone)]
pub(crate) struct PostSource {
    pub(crate) posts: Arc<dyn Posts>,
    pub(crate) mesh: Mesh,
}

impl PostSource {
    /// What a post says; `None` when it was deleted or never was.
    pub(crate) async fn content(&self, post: PostId) -> Result<Option<Content>, AttemptError> {
        if let Some(post) = self.archived(post).await? {
            let deleted = post.deleted_at.is_some();
            let content = Content {
                author_id: post.author_id,
                text: post.text,
                links: post.links,
            };
            return Ok((!deleted).then_some(content));
        }
        let Some(message) = self.mesh.message(streams::POSTS, post.0).await? else {
            return Ok(None);
        };
        let Some(Subject::PostCreated(_)) = Subject::parse(&message.subject) else {
            return Ok(None);
        };
        // What can't be read is no post: fan-out has terminated it as well.
        let Ok(created) = message.decode::<PostCreated>() else {
            return Ok(None);
        };
        let Ok(author_id) = UserId::new(created.author_id) else {
            return Ok(None);
        };
        Ok(Some(Content {
            author_id,
            text: created.text,
            links: created.links,
        }))
    }

    /// Whether a post is known to be deleted.
    pub(crate) async fn is_deleted(&self, post: PostId) -> Result<bool, AttemptError> {
        Ok(self
            .archived(post)
            .await?
            .is_some_and(|post| post.deleted_at.is_some()))
    }

    async fn archived(&self, post: PostId) -> Result<Option<herald_model::Post>, AttemptError> {
        Ok(self.posts.get(&[post]).await?.pop().flatten())
    }
}
