//! Finds posts whose ids POSTS has given twice.

use std::pin::pin;

use futures::StreamExt as _;
use herald_mesh::{RawMessage, Subject, streams};
use herald_model::{Post, PostId};
use herald_store::Archived;

use crate::{Checker, Result};

/// Messages that are compared at once.
const BATCH: usize = 256;

impl Checker {
    /// The first message of POSTS from one sequence to another, both inclusive, whose id another post in the store has.
    ///
    /// All of them are compared: between older posts and newer ones, a lost tail can leave a single such id. The archive
    /// can't tell instead. Its consumer can remember more than the stream, and is then not sent the posts with known ids.
    pub(crate) async fn find_reused_id(&self, from: u64, to: u64) -> Result<Option<PostId>> {
        if from > to {
            return Ok(None);
        }
        let messages = self.mesh.scan(streams::POSTS, None, from, to);
        let mut messages = pin!(messages.ready_chunks(BATCH));
        while let Some(batch) = messages.next().await {
            let batch: Vec<RawMessage> = batch.into_iter().collect::<herald_mesh::Result<_>>()?;
            let ids: Vec<PostId> = batch.iter().map(|message| PostId(message.sequence)).collect();
            for (message, stored) in batch.iter().zip(self.posts.get(&ids).await?) {
                if stored.is_some_and(|stored| is_another(message, &stored)) {
                    return Ok(Some(PostId(message.sequence)));
                }
            }
        }
        Ok(None)
    }
}

/// Whether a message is not the stored post with its id. One that can't be decoded may be that post, of a newer version.
fn is_another(message: &RawMessage, stored: &Post) -> bool {
    match read_entry(message) {
        Ok(Archived::Created(post)) => !herald_posts::is_same_post(stored, &post),
        Ok(Archived::Deleted { .. }) => true,
        Err(_) => false,
    }
}

/// Decodes a message of POSTS.
///
/// # Errors
/// The reason why it is neither a post nor a deletion.
pub(crate) fn read_entry(message: &RawMessage) -> std::result::Result<Archived, String> {
    let subject =
        Subject::parse(&message.subject).ok_or_else(|| format!("unknown subject {}", message.subject))?;
    herald_posts::entry(subject, message.sequence, message.payload.clone())
}
