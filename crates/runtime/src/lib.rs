//! Process infrastructure shared by all services.
//!
//! | module | provides |
//! |---|---|
//! | [`config`] | settings from defaults < file < environment < flags, validated, and printed without secrets |
//! | [`telemetry`] | logs, and optional traces over OTLP |
//! | [`metrics`] | the metrics registry of `/metrics` |
//! | [`health`] | `grpc.health.v1` from the readiness checks |
//! | [`http`] | `/healthz`, `/readyz`, `/metrics` |
//! | [`grpc`] | a gRPC server on a given listener, with health checks, reflection and a span per call |
//! | [`peer`] | a channel to another role, balanced over its healthy addresses |
//! | [`trace`] | trace context propagation in gRPC calls |
//! | [`wait`] | work that waits for another part of Herald, such as the store |
//! | [`shutdown`] | SIGINT and SIGTERM, and bounded draining |

pub mod config;
pub mod grpc;
pub mod health;
pub mod http;
pub mod metrics;
pub mod peer;
pub mod shutdown;
pub mod telemetry;
pub mod trace;
pub mod wait;
