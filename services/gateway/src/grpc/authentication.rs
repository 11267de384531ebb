//! Authentication: who calls, and whether the method is theirs to call ([`herald_auth::rule`]).
//!
//! The layer is inside of admission, so that calls that are refused count as calls, too. It ends with the credential: what
//! is behind it gets the principal in the extensions of the request and its name in the metadata [`ACTOR`].
//!
//! A stream ends when its credential is revoked or expires. A call with one request and one response finishes: its
//! deadline bounds it.

mod own_user;

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::{BoxFuture, ready};
use herald_auth::{Authenticated, Authenticator, Bound, Denied, Lifetime, Principal, Rule, is_health, rule};
use herald_proto::{Method, is_unary};
use herald_rpc::status;
use herald_runtime::metrics::{Counter, Family};
use http::{HeaderName, HeaderValue, Request, Response, header::AUTHORIZATION};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::response::end_when;

use own_user::require_own_user;

/// The metadata that names the caller to the services behind the gateway. Callers can't choose it when they are
/// authenticated.
const ACTOR: HeaderName = HeaderName::from_static("herald-actor");

/// Refuses the calls that lack a credential or what the method needs.
#[derive(Clone)]
pub(super) struct AuthenticationLayer(Arc<Rules>);

struct Rules {
    /// `None` if calls need no credential.
    authenticator: Option<Arc<Authenticator>>,
    request_bytes_max: usize,
    refused: Family<[(&'static str, &'static str); 1], Counter>,
}

impl AuthenticationLayer {
    pub(super) fn new(
        authenticator: Option<Arc<Authenticator>>,
        request_bytes_max: usize,
        refused: Family<[(&'static str, &'static str); 1], Counter>,
    ) -> Self {
        Self(Arc::new(Rules {
            authenticator,
            request_bytes_max,
            refused,
        }))
    }
}

impl<S> Layer<S> for AuthenticationLayer {
    type Service = Authentication<S>;

    fn layer(&self, inner: S) -> Authentication<S> {
        Authentication {
            inner,
            rules: self.0.clone(),
        }
    }
}

/// The service created by [`AuthenticationLayer`].
#[derive(Clone)]
pub(super) struct Authentication<S> {
    inner: S,
    rules: Arc<Rules>,
}

impl<S> Service<Request<Body>> for Authentication<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let authenticator = match &self.rules.authenticator {
            Some(authenticator) if !is_health(path) => authenticator.clone(),
            _ if is_internal(path) => {
                let refused = self.rules.refuse(Denied::Internal);
                return Box::pin(ready(Ok(refused.into_http())));
            }
            _ => {
                // Nobody behind the gateway needs a credential that was sent to it.
                request.headers_mut().remove(AUTHORIZATION);
                return Box::pin(self.inner.call(request));
            }
        };
        let is_unary = is_unary(path);
        let rules = self.rules.clone();
        // The service that is ready, not its clone.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let lifetime = match rules.admit(&authenticator, &mut request).await {
                Ok(lifetime) => lifetime,
                Err(Refusal::Denied(denied)) => return Ok(rules.refuse(denied).into_http()),
                Err(Refusal::Malformed(status)) => return Ok(status.into_http()),
            };
            let response = inner.call(request);
            if is_unary {
                return response.await;
            }
            let mut ended = Box::pin(async move {
                lifetime.ended().await;
                rules.refuse(Denied::Ended)
            });
            tokio::select! {
                response = response => Ok(response?.map(|body| end_when(body, ended, |status| status))),
                status = &mut ended => Ok(status.into_http()),
            }
        })
    }
}

/// Why a call doesn't get through.
enum Refusal {
    Denied(Denied),
    /// The request can't be read.
    Malformed(Status),
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

/// Whether only processes of Herald may call a method. No port of the gateway serves such a method today; it is refused
/// by name, so that it stays refused if one does.
fn is_internal(path: &str) -> bool {
    matches!(Method::from_path(path).map(rule), Some(Rule::Internal))
}

impl Rules {
    /// Counts a refusal, and returns its status.
    fn refuse(&self, denied: Denied) -> Status {
        self.refused.get_or_create(&[("reason", denied.label())]).inc();
        to_status(denied)
    }

    /// Checks a call, and replaces its credential by its principal. Returns how long the credential is valid.
    async fn admit(
        &self,
        authenticator: &Authenticator,
        request: &mut Request<Body>,
    ) -> Result<Lifetime, Refusal> {
        let Authenticated { principal, lifetime } = authenticator.authenticate(request.headers()).await?;
        match Method::from_path(request.uri().path()).map(rule) {
            // A method of reflection, or of another version. It needs a credential too, because the answer tells what
            // the server has.
            None => {}
            Some(Rule::Internal) => return Err(Denied::Internal.into()),
            Some(Rule::Needs { scope, bound }) => {
                if !principal.scopes.has(scope) {
                    return Err(Denied::Scope(scope).into());
                }
                match (&principal.user, bound) {
                    (None, _) => {}
                    (Some(user), Bound::Own(is_own)) => {
                        require_own_user(request, is_own, user.as_str(), self.request_bytes_max).await?;
                    }
                    (Some(_), Bound::Refused) => return Err(Denied::User.into()),
                }
            }
        }
        request.headers_mut().remove(AUTHORIZATION);
        let actor = HeaderValue::from_str(&principal.name);
        request
            .headers_mut()
            .insert(ACTOR, actor.unwrap_or(HeaderValue::from_static("unknown")));
        request.extensions_mut().insert::<Arc<Principal>>(principal);
        Ok(lifetime)
    }
}

/// The status of a refusal.
///
/// | refusal | code | reason |
/// |---|---|---|
/// | `Missing` | UNAUTHENTICATED | `CREDENTIALS_MISSING` |
/// | `Invalid` | UNAUTHENTICATED | `CREDENTIALS_INVALID` |
/// | `Ended` | UNAUTHENTICATED | `CREDENTIALS_ENDED` |
/// | `Scope` | PERMISSION_DENIED | `SCOPE_MISSING`, with the `scope` |
/// | `User` | PERMISSION_DENIED | `USER_MISMATCH` |
/// | `Internal` | PERMISSION_DENIED | `METHOD_INTERNAL` |
/// | `Unavailable` | UNAVAILABLE, with `RetryInfo` | `AUTHENTICATION_UNAVAILABLE` |
pub(super) fn to_status(denied: Denied) -> Status {
    let message = denied.to_string();
    match denied {
        Denied::Missing | Denied::Invalid | Denied::Ended => {
            status::unauthenticated(denied.reason(), message)
        }
        Denied::Scope(scope) => status::scope_missing(denied.reason(), scope.as_str(), message),
        Denied::User | Denied::Internal => status::permission_denied(denied.reason(), message),
        Denied::Unavailable(_) => status::unavailable(denied.reason(), message),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures::stream;
    use herald_auth::{ApiKey, Config, Metrics, NewApiKey, Scopes};
    use herald_model::time::Timestamp;
    use herald_runtime::connections::Connection;
    use http_body::Frame;
    use http_body_util::{BodyExt as _, StreamBody};
    use tonic_types::StatusExt as _;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    const ROOT_KEY: &str = "0123456789abcdef0123456789abcdef";

    fn authenticator() -> Arc<Authenticator> {
        let config = Config {
            root_key: herald_runtime::config::Secret::new(ROOT_KEY),
            ..Config::default()
        };
        Arc::new(Authenticator::new(&config, Metrics::default()).unwrap())
    }

    fn layer(enabled: bool) -> AuthenticationLayer {
        AuthenticationLayer::new(enabled.then(authenticator), 1 << 20, Family::default())
    }

    /// The status of a call and the headers that the service behind gets.
    async fn call(enabled: bool, path: &str, headers: &[(&str, &str)]) -> (Option<String>, http::HeaderMap) {
        let seen = Arc::new(parking_lot::Mutex::new(http::HeaderMap::new()));
        let inner = {
            let seen = seen.clone();
            service_fn(move |request: Request<Body>| {
                *seen.lock() = request.headers().clone();
                let is_known = request.extensions().get::<Arc<Principal>>().is_some();
                assert!(request.extensions().get::<Connection>().is_none());
                async move {
                    let response = Response::builder().header("known", is_known.to_string());
                    Ok::<_, Infallible>(response.body(Body::empty()).unwrap())
                }
            })
        };
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = layer(enabled).layer(inner).oneshot(request).await.unwrap();
        let status = response.headers().get("grpc-status");
        let status = status.map(|status| status.to_str().unwrap().to_owned());
        let seen = seen.lock().clone();
        (status, seen)
    }

    #[tokio::test]
    async fn the_name_of_the_caller_replaces_what_it_claims_to_be() {
        let bearer = format!("Bearer {ROOT_KEY}");
        let path = Method::DiscardDeadLetters.path();
        let claims = [("authorization", bearer.as_str()), ("herald-actor", "somebody")];
        let (status, seen) = call(true, path, &claims).await;
        assert_eq!(status, None);
        assert_eq!(seen.get("herald-actor").unwrap(), "root");
        assert!(!seen.contains_key("authorization"));
        // Without authentication the caller says who it is.
        let (status, seen) = call(false, path, &claims).await;
        assert_eq!(status, None);
        assert_eq!(seen.get("herald-actor").unwrap(), "somebody");
        assert!(!seen.contains_key("authorization"));
    }

    /// A response that never ends by itself: it doesn't begin, has no message, or has messages without end.
    #[derive(Debug, Clone, Copy)]
    enum Open {
        Call,
        SilentBody,
        BusyBody,
    }

    /// Calls a service with an API key that is revoked once the call is open. Returns the last status, if there is one.
    async fn status_after_revocation(path: &str, open: Open) -> Option<Status> {
        let authenticator = authenticator();
        let new = NewApiKey::generate();
        let key = ApiKey {
            id: new.id,
            name: "app".into(),
            secret_hash: new.secret_hash,
            scopes: Scopes::all(),
            created_at: Timestamp(0),
            expires_at: None,
            revoked_at: None,
        };
        authenticator.keyring().set(vec![key]);
        let revoke = authenticator.clone();
        let inner = service_fn(move |_: Request<Body>| {
            revoke.keyring().set(Vec::new());
            async move {
                let body = match open {
                    Open::Call => std::future::pending().await,
                    Open::SilentBody => Body::new(StreamBody::new(stream::pending::<Result<_, Status>>())),
                    Open::BusyBody => {
                        let frame = || Ok::<_, Status>(Frame::data(Bytes::from_static(b"x")));
                        Body::new(StreamBody::new(stream::repeat_with(frame)))
                    }
                };
                Ok::<_, Infallible>(Response::new(body))
            }
        });
        let refused = Family::default();
        let layer = AuthenticationLayer::new(Some(authenticator), 1 << 20, refused.clone());
        let request = Request::post(path).header("authorization", format!("Bearer {}", new.token.expose()));
        let request = request.body(Body::empty()).unwrap();
        let ended = async {
            let response = layer.layer(inner).oneshot(request).await.unwrap();
            let headers = response.headers().clone();
            let trailers = response.into_body().collect().await.unwrap().trailers().cloned();
            Status::from_header_map(&trailers.unwrap_or(headers))
        };
        let limit = std::time::Duration::from_mins(1);
        let ended = tokio::time::timeout(limit, ended).await.ok().flatten();
        let counted = refused.get_or_create(&[("reason", "credentials_ended")]).get();
        assert_eq!(counted, u64::from(ended.is_some()), "{path}");
        ended
    }

    #[tokio::test(start_paused = true)]
    async fn every_stream_ends_with_its_credential_and_a_single_answer_is_still_given() {
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        let methods = Method::ALL
            .into_iter()
            .filter(|method| matches!(rule(*method), Rule::Needs { .. }));
        for path in methods.map(Method::path).chain([reflection]) {
            for open in [Open::Call, Open::SilentBody, Open::BusyBody] {
                if is_unary(path) {
                    if !matches!(open, Open::BusyBody) {
                        assert!(status_after_revocation(path, open).await.is_none(), "{path}");
                    }
                    continue;
                }
                let status = status_after_revocation(path, open).await;
                let status = status.unwrap_or_else(|| panic!("{path} goes on, {open:?}"));
                assert_eq!(status.code(), tonic::Code::Unauthenticated, "{path}");
                let info = status.get_details_error_info().unwrap();
                assert_eq!(info.reason, "CREDENTIALS_ENDED", "{path}, {open:?}");
            }
        }
    }

    #[tokio::test]
    async fn internal_methods_are_refused_with_and_without_authentication() {
        let bearer = format!("Bearer {ROOT_KEY}");
        let internal: Vec<_> = Method::ALL
            .into_iter()
            .filter(|method| matches!(rule(*method), Rule::Internal))
            .collect();
        assert!(internal.contains(&Method::ExportFollowers) && internal.contains(&Method::Backup));
        for method in internal {
            for (enabled, headers, expected) in [
                (true, &[("authorization", bearer.as_str())] as &[_], "7"),
                (true, &[], "16"),
                (false, &[], "7"),
            ] {
                let (status, seen) = call(enabled, method.path(), headers).await;
                assert_eq!(status.as_deref(), Some(expected), "{method:?}");
                assert!(seen.is_empty(), "{method:?} gets through");
            }
        }
    }

    #[tokio::test]
    async fn health_needs_no_credential_and_what_is_unknown_does() {
        for (path, expected) in [
            ("/grpc.health.v1.Health/Check", None),
            ("/grpc.health.v1.Health/Watch", None),
            (
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                Some("16"),
            ),
            ("/herald.v1.PostService/ComesLater", Some("16")),
            ("/grpc.health.v1.HealthX/Check", Some("16")),
        ] {
            let (status, _) = call(true, path, &[]).await;
            assert_eq!(status.as_deref(), expected, "{path}");
        }
    }
}
