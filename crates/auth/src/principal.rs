//! The caller, and why a caller is refused.

use std::fmt::Write as _;

use herald_model::{ApiKey, Scope, Scopes, UserId};

/// Name of the key in the configuration.
pub const ROOT: &str = "root";

/// Longest name of a principal, bytes: the audit log takes no longer one.
const NAME_BYTES_MAX: usize = 128;

/// A caller whose credential is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Who it is, in the audit log: the name of an API key, or `user:` and the user of a token. 1 to 128 bytes of visible
    /// ASCII; other bytes of a user id are percent-encoded.
    pub name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// The one user that it acts for; `None` if it acts for all.
    pub user: Option<UserId>,
}

impl Principal {
    /// The caller with the root key.
    pub(crate) fn root() -> Self {
        Self {
            name: ROOT.into(),
            scopes: Scopes::all(),
            user: None,
        }
    }

    /// The caller with an API key. It acts for all users.
    pub(crate) fn of_key(key: &ApiKey) -> Self {
        Self {
            name: key.name.clone(),
            scopes: key.scopes,
            user: None,
        }
    }

    /// The caller with a token of a user. With a scope of operators it acts for all users.
    pub(crate) fn of_user(user: UserId, scopes: Scopes) -> Self {
        let acts_for_all = scopes.has(Scope::Operate) || scopes.has(Scope::Audit);
        Self {
            name: name_of(&user),
            scopes,
            user: (!acts_for_all).then_some(user),
        }
    }
}

/// `user:` keeps users apart from keys, whose names have no colon: no user can be called `root`.
fn name_of(user: &UserId) -> String {
    let mut name = String::from("user:");
    for byte in user.as_str().bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            name.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            let _ = write!(name, "%{byte:02X}");
        }
    }
    name.truncate(NAME_BYTES_MAX);
    name
}

/// Why a call is refused. It never says whether what the call names exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The call has no credential.
    #[error("the call has no credentials: send the metadata `authorization: Bearer KEY_OR_TOKEN`")]
    Missing,
    /// The credential is malformed, unknown, expired, revoked, or of another issuer or audience. Callers aren't told which.
    #[error(
        "the API key or token is not valid for this server: it is unknown, expired, revoked or malformed"
    )]
    Invalid,
    /// The credential was valid when a stream began, and no longer is.
    #[error(
        "the API key or token was revoked or has expired while the stream was open: call again with a valid one"
    )]
    Ended,
    /// The credential lacks the scope of the method.
    #[error("the call needs the scope `{0}`, which the API key or token does not have")]
    Scope(Scope),
    /// The token acts for one user, and the call asks for another, or for what only callers that act for all users may do.
    #[error("the token acts for its own user only")]
    User,
    /// Only Herald's own processes may call the method, at their own ports.
    #[error("only processes of Herald call this method, and not through a gateway")]
    Internal,
    /// What the credential is checked with isn't known yet: the store or the issuer did not answer since the start.
    #[error("credentials can't be checked yet, because {0} did not answer; retry later")]
    Unavailable(&'static str),
}

impl Denied {
    /// The reason in `ErrorInfo`.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "CREDENTIALS_MISSING",
            Self::Invalid => "CREDENTIALS_INVALID",
            Self::Ended => "CREDENTIALS_ENDED",
            Self::Scope(_) => "SCOPE_MISSING",
            Self::User => "USER_MISMATCH",
            Self::Internal => "METHOD_INTERNAL",
            Self::Unavailable(_) => "AUTHENTICATION_UNAVAILABLE",
        }
    }

    /// The value of the metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Missing => "credentials_missing",
            Self::Invalid => "credentials_invalid",
            Self::Ended => "credentials_ended",
            Self::Scope(_) => "scope_missing",
            Self::User => "user_mismatch",
            Self::Internal => "method_internal",
            Self::Unavailable(_) => "authentication_unavailable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: &str) -> UserId {
        UserId::new(id).unwrap()
    }

    #[test]
    fn a_token_of_an_operator_acts_for_all() {
        let with = |scopes: &[Scope]| Principal::of_user(user("ann"), scopes.iter().copied().collect());
        assert_eq!(with(&[Scope::Post, Scope::Scale]).user, Some(user("ann")));
        assert_eq!(with(&[]).user, Some(user("ann")));
        assert_eq!(with(&[Scope::Operate]).user, None);
        assert_eq!(with(&[Scope::Audit]).user, None);
    }

    #[test]
    fn a_name_is_visible_ascii_of_at_most_128_bytes() {
        assert_eq!(name_of(&user("root")), "user:root");
        assert_eq!(name_of(&user("jürgen 100%")), "user:j%C3%BCrgen%20100%25");
        assert_eq!(name_of(&user(&"ü".repeat(64))).len(), 128);
    }
}
