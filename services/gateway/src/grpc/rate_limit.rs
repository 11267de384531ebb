//! Refuses calls of those who call too often: of a client address, and of a principal.

use std::{hash::Hash, net::IpAddr, sync::Arc};

use herald_auth::Principal;
use herald_rpc::status;
use herald_runtime::connections::Connection;
use http::{Extensions, Request, Response};
use tonic::body::Body;

use super::{
    admission::HEALTH_CHECK,
    gate::{Gate, GateLayer},
};
use crate::{Config, Metrics, rates::Rates};

/// Limits the rate of calls over both ports: RESOURCE_EXHAUSTED, `RATE_LIMITED`, with the time after which the next call is
/// admitted. Health checks don't count.
pub(super) struct RateLimit<K: Hash + Eq + Clone> {
    rates: Rates<K>,
    /// Whose call it is. `None`: the call is not limited.
    key_of: fn(&Extensions) -> Option<K>,
    /// What is limited, in metrics and in answers.
    by: &'static str,
    message: &'static str,
    metrics: Metrics,
}

impl<K: Hash + Eq + Clone> Clone for RateLimit<K> {
    fn clone(&self) -> Self {
        Self {
            rates: self.rates.clone(),
            key_of: self.key_of,
            by: self.by,
            message: self.message,
            metrics: self.metrics.clone(),
        }
    }
}

impl RateLimit<IpAddr> {
    /// Limits the calls of each client address.
    pub(super) fn of_addresses(config: &Config, metrics: Metrics) -> GateLayer<Self> {
        GateLayer(Self {
            rates: Rates::new(config.limits.per_address()),
            key_of: |extensions| Connection::caller_of(extensions).address,
            by: "address",
            message: "this address calls more often than gateway.limits.calls_per_second_per_address allows",
            metrics,
        })
    }
}

impl RateLimit<String> {
    /// Limits the calls of each principal, the name of an API key or the user of a token. Belongs behind authentication: only
    /// valid credentials have a bucket.
    pub(super) fn of_principals(config: &Config, metrics: Metrics) -> GateLayer<Self> {
        GateLayer(Self {
            rates: Rates::new(config.limits.per_principal()),
            key_of: |extensions| {
                let principal = extensions.get::<Arc<Principal>>();
                principal.map(|principal| principal.name.clone())
            },
            by: "principal",
            message: "this key or user calls more often than gateway.limits.calls_per_second_per_principal allows",
            metrics,
        })
    }
}

impl<K: Hash + Eq + Clone> Gate for RateLimit<K> {
    fn refusal<A>(&self, request: &Request<A>) -> Option<Response<Body>> {
        let is_counted = self.rates.are_limited() && request.uri().path() != HEALTH_CHECK;
        let key = is_counted
            .then(|| (self.key_of)(request.extensions()))
            .flatten()?;
        let wait = self.rates.take(&key).err()?;
        self.metrics.count_limited(self.by);
        Some(status::rate_limited(self.by, self.message, wait).into_http())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use herald_auth::Scopes;
    use herald_runtime::metrics::Shared;
    use tower::{Layer as _, ServiceExt as _, service_fn};

    use super::*;

    /// The number of calls, of `tries` by a principal of this name, that get through.
    async fn admitted(
        layer: &GateLayer<RateLimit<String>>,
        name: Option<&str>,
        path: &str,
        tries: usize,
    ) -> usize {
        let inner = service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Body::empty())));
        let service = layer.layer(inner);
        let mut admitted = 0;
        for _ in 0..tries {
            let mut request = Request::post(path).body(()).unwrap();
            if let Some(name) = name {
                request.extensions_mut().insert(Arc::new(Principal {
                    name: name.into(),
                    scopes: Scopes::default(),
                    user: None,
                }));
            }
            let response = service.clone().oneshot(request).await.unwrap();
            admitted += usize::from(!response.headers().contains_key("grpc-status"));
        }
        admitted
    }

    #[tokio::test(start_paused = true)]
    async fn each_principal_has_a_rate_of_its_own() {
        let mut config = Config::default();
        config.limits.calls_per_second_per_principal = 2;
        config.limits.calls_burst_per_principal = 3;
        let metrics = Shared::new().register(Metrics::new);
        let layer = RateLimit::of_principals(&config, metrics.clone());
        let call = "/herald.v1.PostService/SubmitPost";
        assert_eq!(admitted(&layer, Some("app"), call, 10).await, 3);
        assert_eq!(admitted(&layer, Some("user:1"), call, 10).await, 3);
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert_eq!(admitted(&layer, Some("app"), call, 10).await, 2);
        let limited = metrics.rate_limited.get_or_create(&[("by", "principal")]).get();
        assert_eq!(limited, 7 + 7 + 8);
        // Neither health checks nor calls without a principal are limited.
        assert_eq!(admitted(&layer, Some("app"), HEALTH_CHECK, 10).await, 10);
        assert_eq!(admitted(&layer, None, call, 10).await, 10);
    }
}
