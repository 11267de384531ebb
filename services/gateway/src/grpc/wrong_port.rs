//! Tells a caller who calls a service at the wrong one of the two ports.

use herald_rpc::status;
use http::{Request, Response};
use tonic::body::Body;

use super::{
    gate::{Gate, GateLayer},
    routes,
};

/// Answers calls of the other port's services: UNIMPLEMENTED, with where they are served.
#[derive(Clone, Copy)]
pub(super) struct WrongPort {
    /// Services of the other port.
    services: [&'static [&'static str]; 2],
    message: &'static str,
}

impl WrongPort {
    /// Of the public port.
    pub(super) const PUBLIC: GateLayer<Self> = GateLayer(Self {
        services: [&routes::OPERATORS, &routes::OPERATORS_FORWARDED],
        message: "this port serves the public API; calls of operators are served on the operator port (setting \
                  operator_grpc, by default port 7702)",
    });
    /// Of the operator port.
    pub(super) const OPERATORS: GateLayer<Self> = GateLayer(Self {
        services: [&routes::PUBLIC, &routes::PUBLIC_FORWARDED],
        message: "this port serves calls of operators; the public API is served on the public port (setting grpc, by \
                  default port 7700)",
    });

    fn has(&self, path: &str) -> bool {
        let service = path.trim_start_matches('/').split('/').next();
        service.is_some_and(|name| self.services.iter().any(|services| services.contains(&name)))
    }
}

impl Gate for WrongPort {
    fn refusal<A>(&self, request: &Request<A>) -> Option<Response<Body>> {
        let is_wrong = self.has(request.uri().path());
        is_wrong.then(|| status::unimplemented("WRONG_PORT", self.message).into_http())
    }
}
