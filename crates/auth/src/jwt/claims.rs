//! The claims of a token.

use herald_model::{Scopes, UserId};
use serde_json::Value;

use super::Claims;
use crate::{JwtConfig, Principal};

/// The caller of verified claims; `None` without a user.
pub(super) fn principal(config: &JwtConfig, claims: &Claims) -> Option<Principal> {
    let user = match claims.get(&config.user_claim)? {
        Value::String(user) => user.clone(),
        Value::Number(user) if !user.is_f64() => user.to_string(),
        _ => return None,
    };
    let user = UserId::new(user).ok()?;
    Some(Principal::of_user(user, scopes(claims.get(&config.scope_claim))))
}

/// The scopes of a claim: a string with blanks between them (RFC 8693, section 4.2), or an array of strings. Names of
/// scopes that Herald doesn't have are ignored, because an issuer has those of others, such as `openid`.
fn scopes(claim: Option<&Value>) -> Scopes {
    match claim {
        Some(Value::String(names)) => names.split(' ').filter_map(|name| name.parse().ok()).collect(),
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .filter_map(|name| name.parse().ok())
            .collect(),
        _ => Scopes::NONE,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(claims: &Value) -> Option<Principal> {
        principal(&JwtConfig::default(), claims.as_object().unwrap())
    }

    #[test]
    fn scopes_are_a_string_or_an_array() {
        let scopes = |claim: Value| {
            of(&json!({"sub": "ann", "scope": claim}))
                .unwrap()
                .scopes
                .to_string()
        };
        assert_eq!(scopes("openid read post  ".into()), "post,read");
        assert_eq!(scopes(json!(["read", "profile", 7])), "read");
        assert_eq!(scopes(json!({"read": true})), "");
        assert_eq!(scopes("Read read,post".into()), "");
        assert_eq!(of(&json!({"sub": "ann"})).unwrap().scopes, Scopes::NONE);
    }

    #[test]
    fn the_user_is_a_string_or_an_integer() {
        assert_eq!(of(&json!({"sub": "ann"})).unwrap().user, UserId::new("ann").ok());
        assert_eq!(of(&json!({"sub": 42})).unwrap().user, UserId::new("42").ok());
        for sub in [json!(null), json!(""), json!(1.5), json!(["ann"]), json!("a\nb")] {
            assert_eq!(of(&json!({"sub": sub})), None);
        }
        assert_eq!(of(&json!({})), None);
    }

    #[test]
    fn other_claims_can_be_named() {
        let config = JwtConfig {
            scope_claim: "permissions".into(),
            user_claim: "uid".into(),
            ..JwtConfig::default()
        };
        let claims = json!({"sub": "x", "uid": "ann", "scope": "operate", "permissions": ["read"]});
        let principal = principal(&config, claims.as_object().unwrap()).unwrap();
        assert_eq!(principal.user, UserId::new("ann").ok());
        assert_eq!(principal.scopes.to_string(), "read");
    }
}
