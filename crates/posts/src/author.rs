//! Keys of authors that a message lacks.
//!
//! A gateway accepts posts while the store is away. If it does not know the key of an author then, the message has the id
//! alone, and each reader looks up the key. It is the same for all of them, because the store assigns one key to an id.

use herald_model::{UserId, UserKey};
use herald_store::{Archived, Error, ErrorKind, Result, Users};

/// The key in a message without one. The store assigns keys from 1 on.
pub const NO_KEY: UserKey = UserKey(0);

/// The key of an author: the one of the message, or that of the id, which is assigned if the id has none.
///
/// # Errors
/// Those of the store.
pub async fn author_key(users: &dyn Users, key: UserKey, id: &UserId) -> Result<UserKey> {
    if key != NO_KEY {
        return Ok(key);
    }
    let keys = users.intern(std::slice::from_ref(id)).await?;
    keys.into_iter().next().ok_or_else(no_key)
}

/// Whether a post lacks the key of its author.
pub fn lacks_author(entry: &Archived) -> bool {
    matches!(entry, Archived::Created(post) if post.author == NO_KEY)
}

/// Sets the keys of authors that messages lacked.
///
/// # Errors
/// Those of the store; then no entry is changed.
pub async fn resolve_authors(users: &dyn Users, entries: &mut [Archived]) -> Result<()> {
    let mut posts: Vec<_> = entries
        .iter_mut()
        .filter_map(|entry| match entry {
            Archived::Created(post) if post.author == NO_KEY => Some(post),
            _ => None,
        })
        .collect();
    if posts.is_empty() {
        return Ok(());
    }
    let mut ids: Vec<UserId> = posts.iter().map(|post| post.author_id.clone()).collect();
    ids.sort_unstable();
    ids.dedup();
    let keys = users.intern(&ids).await?;
    if keys.len() != ids.len() {
        return Err(no_key());
    }
    for post in &mut posts {
        if let Ok(index) = ids.binary_search(&post.author_id) {
            post.author = keys[index];
        }
    }
    Ok(())
}

fn no_key() -> Error {
    Error::new(ErrorKind::Corrupt, "the store returned no key for a user id")
}
