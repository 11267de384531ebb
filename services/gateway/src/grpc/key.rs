//! KeyService.

use std::{sync::Arc, time::Duration};

use herald_auth::{ApiKey, ApiKeyId, Denied, NewApiKey, Principal, ROOT, Scope, Scopes};
use herald_model::{is_key_name, time::Timestamp};
use herald_proto::{
    timestamp_to_proto,
    v1::{self, key_service_server::KeyService},
};
use herald_rpc::{fields::Violations, status};
use herald_store::ErrorKind;
use tonic::{Request, Response, Status};

use crate::keys::Keys;

const TTL_MIN: Duration = Duration::from_mins(1);
/// Ten years, leap days included.
const TTL_MAX: Duration = Duration::from_hours(24 * 3_653);

/// Implements KeyService.
pub(crate) struct KeyApi {
    keys: Keys,
}

impl KeyApi {
    pub(crate) fn new(keys: Keys) -> Self {
        Self { keys }
    }
}

/// A validated request.
#[derive(Debug)]
struct Creation {
    name: String,
    scopes: Scopes,
    ttl: Option<Duration>,
}

fn parse(request: v1::CreateKeyRequest) -> Result<Creation, Status> {
    let mut violations = Violations::new();
    violations.check(
        "name",
        is_key_name(&request.name),
        "must be 1 to 64 letters, digits, `.`, `_` and `-`",
    );
    violations.check(
        "name",
        request.name != ROOT,
        "must not be root, the name of the root key",
    );
    violations.check("scopes", !request.scopes.is_empty(), "must have a scope");
    let scopes = request.scopes.iter().enumerate().filter_map(|(index, scope)| {
        let scope = v1::Scope::try_from(*scope).ok().and_then(from_v1);
        violations.check(
            format!("scopes[{index}]"),
            scope.is_some(),
            "is not a known scope",
        );
        scope
    });
    let scopes = scopes.collect();
    let ttl = request
        .ttl
        .map(Duration::try_from)
        .transpose()
        .unwrap_or_default();
    violations.check(
        "ttl",
        request.ttl.is_none() || ttl.is_some_and(|ttl| (TTL_MIN..=TTL_MAX).contains(&ttl)),
        "must be 1 minute to 10 years",
    );
    violations.into_result()?;
    Ok(Creation {
        name: request.name,
        scopes,
        ttl,
    })
}

#[tonic::async_trait]
impl KeyService for KeyApi {
    async fn create_key(
        &self,
        request: Request<v1::CreateKeyRequest>,
    ) -> Result<Response<v1::CreateKeyResponse>, Status> {
        // Without authentication everybody may do everything.
        let caller = request.extensions().get::<Arc<Principal>>().cloned();
        let creation = parse(request.into_inner())?;
        let held = caller.as_ref().map_or_else(Scopes::all, |caller| caller.scopes);
        if let Some(lacking) = creation.scopes.iter().find(|scope| !held.has(*scope)) {
            let message = format!("a key gives only scopes that it has, and this one lacks `{lacking}`");
            return Err(status::scope_missing(
                Denied::Scope(lacking).reason(),
                lacking.as_str(),
                message,
            ));
        }
        let new = NewApiKey::generate();
        let created_at = Timestamp::now();
        let key = ApiKey {
            id: new.id,
            name: creation.name,
            secret_hash: new.secret_hash,
            scopes: creation.scopes,
            created_at,
            expires_at: creation.ttl.map(|ttl| created_at.plus(ttl)),
            revoked_at: None,
        };
        self.keys.insert(&key).await.map_err(|error| match error.kind() {
            ErrorKind::LimitExceeded => status::quota("TOO_MANY_KEYS", "keys", error.to_string()),
            _ => status::from_store(&error),
        })?;
        tracing::info!(key = %key.id, name = key.name, scopes = %key.scopes, by = name_of(caller.as_deref()), "created an API key");
        Ok(Response::new(v1::CreateKeyResponse {
            key: Some(to_v1(key)),
            token: new.token.expose().to_owned(),
        }))
    }

    async fn list_keys(
        &self,
        _: Request<v1::ListKeysRequest>,
    ) -> Result<Response<v1::ListKeysResponse>, Status> {
        let keys = self
            .keys
            .all()
            .await
            .map_err(|error| status::from_store(&error))?;
        Ok(Response::new(v1::ListKeysResponse {
            keys: keys.into_iter().map(to_v1).collect(),
        }))
    }

    async fn revoke_key(
        &self,
        request: Request<v1::RevokeKeyRequest>,
    ) -> Result<Response<v1::RevokeKeyResponse>, Status> {
        let caller = request.extensions().get::<Arc<Principal>>().cloned();
        let id: ApiKeyId =
            request
                .into_inner()
                .key_id
                .parse()
                .map_err(|error: herald_model::InvalidApiKeyId| {
                    status::invalid(&[("key_id", error.to_string())])
                })?;
        let revoked = self
            .keys
            .revoke(id)
            .await
            .map_err(|error| status::from_store(&error))?;
        let Some(key) = revoked else {
            return Err(status::not_found(
                "KEY_NOT_FOUND",
                format!("there is no API key {id}"),
            ));
        };
        tracing::info!(key = %key.id, name = key.name, by = name_of(caller.as_deref()), "revoked an API key");
        Ok(Response::new(v1::RevokeKeyResponse {
            key: Some(to_v1(key)),
        }))
    }
}

fn name_of(caller: Option<&Principal>) -> &str {
    caller.map_or("unknown", |caller| &caller.name)
}

fn from_v1(scope: v1::Scope) -> Option<Scope> {
    Some(match scope {
        v1::Scope::Unspecified => return None,
        v1::Scope::Post => Scope::Post,
        v1::Scope::Read => Scope::Read,
        v1::Scope::Graph => Scope::Graph,
        v1::Scope::Devices => Scope::Devices,
        v1::Scope::Operate => Scope::Operate,
        v1::Scope::Audit => Scope::Audit,
        v1::Scope::Scale => Scope::Scale,
    })
}

fn scope_to_v1(scope: Scope) -> v1::Scope {
    match scope {
        Scope::Post => v1::Scope::Post,
        Scope::Read => v1::Scope::Read,
        Scope::Graph => v1::Scope::Graph,
        Scope::Devices => v1::Scope::Devices,
        Scope::Operate => v1::Scope::Operate,
        Scope::Audit => v1::Scope::Audit,
        Scope::Scale => v1::Scope::Scale,
    }
}

fn to_v1(key: ApiKey) -> v1::Key {
    v1::Key {
        key_id: key.id.to_string(),
        name: key.name,
        scopes: key.scopes.iter().map(|scope| scope_to_v1(scope).into()).collect(),
        create_time: Some(timestamp_to_proto(key.created_at)),
        expire_time: key.expires_at.map(timestamp_to_proto),
        revoke_time: key.revoked_at.map(timestamp_to_proto),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    fn request(name: &str, scopes: &[v1::Scope], ttl_seconds: Option<i64>) -> v1::CreateKeyRequest {
        v1::CreateKeyRequest {
            name: name.into(),
            scopes: scopes.iter().map(|scope| i32::from(*scope)).collect(),
            ttl: ttl_seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        }
    }

    #[test]
    fn each_invalid_field_is_named() {
        let fields = |request| {
            let status = parse(request).unwrap_err();
            let violations = status.get_details_bad_request().unwrap().field_violations;
            violations
                .into_iter()
                .map(|violation| violation.field)
                .collect::<Vec<_>>()
        };
        let post = [v1::Scope::Post];
        assert_eq!(fields(request("", &[], Some(0))), ["name", "scopes", "ttl"]);
        assert_eq!(fields(request("root", &post, None)), ["name"]);
        assert_eq!(fields(request("a b", &post, None)), ["name"]);
        assert_eq!(
            fields(request("a", &[v1::Scope::Post, v1::Scope::Unspecified], None)),
            ["scopes[1]"]
        );
        assert_eq!(fields(request("a", &post, Some(59))), ["ttl"]);
        assert_eq!(fields(request("a", &post, Some(-60))), ["ttl"]);
        assert_eq!(fields(request("a", &post, Some(11 * 366 * 86_400))), ["ttl"]);
        let creation = parse(request("ci", &post, Some(60))).unwrap();
        assert_eq!((creation.name.as_str(), creation.ttl), ("ci", Some(TTL_MIN)));
    }

    #[test]
    fn each_scope_has_its_counterpart() {
        for scope in Scope::ALL {
            assert_eq!(from_v1(scope_to_v1(scope)), Some(scope));
        }
    }
}
