//! Refuses calls of web pages that may not call.
//!
//! A browser sends the origin of the page with each call, and asks beforehand (CORS) unless it takes the call for a simple one,
//! or for one of the page's own server: a name that its owner points at 127.0.0.1 makes Herald that server (DNS rebinding).
//! So the answer to that question isn't enough, and a call itself is refused by its origin. Programs send none.

use std::sync::Arc;

use herald_rpc::status;
use http::{HeaderValue, Request, Response, StatusCode, header};
use tonic::body::Body;

use super::gate::{Gate, GateLayer};

/// Any origin, in the list of the allowed ones.
pub(super) const ANY: &str = "*";

/// Refuses calls with an origin that is not allowed: PERMISSION_DENIED, `ORIGIN_NOT_ALLOWED`, with HTTP's status 403.
#[derive(Clone)]
pub(super) struct Origins(Arc<[String]>);

impl Origins {
    /// Allows these origins; [`ANY`] allows all.
    pub(super) fn allowing(origins: &[String]) -> GateLayer<Self> {
        GateLayer(Self(origins.into()))
    }

    /// Allows none.
    pub(super) fn allowing_none() -> GateLayer<Self> {
        Self::allowing(&[])
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let is_allowed = |allowed: &String| allowed == ANY || origin == allowed.as_str();
        self.0.iter().any(is_allowed)
    }
}

impl Gate for Origins {
    fn refusal<A>(&self, request: &Request<A>) -> Option<Response<Body>> {
        let origins = request.headers().get_all(header::ORIGIN);
        if origins.iter().all(|origin| self.allows(origin)) {
            return None;
        }
        let refused = status::permission_denied(
            "ORIGIN_NOT_ALLOWED",
            "the origin of this web page may not call this port (gateway.cors_origins); no origin may call the operator port",
        );
        let mut response = refused.into_http();
        *response.status_mut() = StatusCode::FORBIDDEN;
        Some(response)
    }
}
