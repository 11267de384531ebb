//! What a follow may be.

use herald_model::UserId;
use herald_proto::v1;

/// A follow that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Follow {
    pub(crate) follower: UserId,
    pub(crate) author: UserId,
    pub(crate) notify: bool,
}

/// What is wrong with a follow: the field, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) field: &'static str,
    pub(crate) description: String,
}

/// Checks a pair of ids.
pub(crate) fn pair(follower_id: String, author_id: String) -> Result<(UserId, UserId), Violation> {
    let follower = UserId::new(follower_id).map_err(|e| Violation {
        field: "follower_id",
        description: e.to_string(),
    })?;
    let author = UserId::new(author_id).map_err(|e| Violation {
        field: "author_id",
        description: e.to_string(),
    })?;
    if follower == author {
        return Err(Violation {
            field: "author_id",
            description: "must be another user than follower_id".into(),
        });
    }
    Ok((follower, author))
}

/// Checks a follow.
pub(crate) fn follow(follow: v1::Follow) -> Result<Follow, Violation> {
    let (follower, author) = pair(follow.follower_id, follow.author_id)?;
    Ok(Follow {
        follower,
        author,
        notify: follow.notify,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation(follower: &str, author: &str) -> &'static str {
        pair(follower.into(), author.into())
            .expect_err("must be refused")
            .field
    }

    #[test]
    fn a_bad_follow_is_refused_by_field() {
        assert_eq!(violation("", "a"), "follower_id");
        assert_eq!(violation("a", ""), "author_id");
        assert_eq!(violation("a", "a"), "author_id");
        assert_eq!(violation("a\u{7}", "b"), "follower_id");
        assert_eq!(violation("a", &"b".repeat(129)), "author_id");
        assert!(pair("a".into(), "b".into()).is_ok());
    }
}
