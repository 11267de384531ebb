//! Process infrastructure shared by all services.
//!
//! | module | provides |
//! |---|---|
//! | [`config`] | settings from defaults < file < environment < flags, validated, and printed without secrets |
//! | [`telemetry`] | logs, and optional traces over OTLP |
//! | [`metrics`] | the metrics registry of `/metrics` |
//! | [`health`] | `grpc.health.v1` from the readiness checks |
//! | [`http`] | `/healthz`, `/readyz`, `/metrics` |
//! | [`connections`] | the connections of a port: their number, silent clients, answers that nobody reads |
//! | [`shares`] | shares of a bounded capacity, so that one caller never takes all of it |
//! | [`grpc`] | a gRPC server on a given listener, with health checks, reflection and a span per call |
//! | [`peer`] | channels to another role, balanced over its healthy addresses |
//! | [`route`] | the ways to call a role, apart from each other |
//! | [`trace`] | trace context propagation in gRPC calls |
//! | [`wait`] | work that waits for another part of Herald, such as the store |
//! | [`shutdown`] | SIGINT and SIGTERM, and bounded draining |

pub mod config;
pub mod connections;
pub mod grpc;
pub mod health;
pub mod http;
pub mod metrics;
pub mod peer;
pub mod route;
pub mod shares;
pub mod shutdown;
pub mod telemetry;
pub mod trace;
pub mod wait;
