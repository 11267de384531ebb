//! Validation of follows.

use herald_model::UserId;
use herald_proto::v1;

/// A validated follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Follow {
    pub(crate) follower: UserId,
    pub(crate) author: UserId,
    /// `None` keeps the setting of a follow that exists.
    pub(crate) notify: Option<bool>,
}

/// An invalid field of a follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) field: &'static str,
    pub(crate) description: String,
}

/// Checks the ids of a follower and an author: both valid, and different.
pub(crate) fn parse_pair(follower_id: String, author_id: String) -> Result<(UserId, UserId), Violation> {
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
            description: "must differ from follower_id".into(),
        });
    }
    Ok((follower, author))
}

/// Validates a follow.
pub(crate) fn parse_follow(follow: v1::Follow) -> Result<Follow, Violation> {
    let (follower, author) = parse_pair(follow.follower_id, follow.author_id)?;
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
        parse_pair(follower.into(), author.into())
            .expect_err("must be refused")
            .field
    }

    #[test]
    fn an_invalid_follow_is_refused_by_field() {
        assert_eq!(violation("", "a"), "follower_id");
        assert_eq!(violation("a", ""), "author_id");
        assert_eq!(violation("a", "a"), "author_id");
        assert_eq!(violation("a\u{7}", "b"), "follower_id");
        assert_eq!(violation("a", &"b".repeat(129)), "author_id");
        assert_eq!(violation("\u{200b}", "b"), "follower_id");
        assert_eq!(violation("a", "\u{a0}"), "author_id");
        assert!(parse_pair("a".into(), "b".into()).is_ok());
    }
}
