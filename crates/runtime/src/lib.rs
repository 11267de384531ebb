//! Process infrastructure shared by all services.
//!
//! | module | provides |
//! |---|---|
//! | [`config`] | settings from defaults < file < environment < flags, validated, and printed without secrets |
//! | [`telemetry`] | logs, and optional traces over OTLP |
//! | [`metrics`] | the metrics registry of `/metrics`: `crates/metrics` |
//! | [`health`] | `grpc.health.v1` from the readiness checks |
//! | [`http`] | `/healthz`, `/readyz`, `/metrics` |
//! | [`ready_metrics`] | the readiness checks as a metric |
//! | [`connections`] | the connections of a port: their number, silent clients, answers that nobody reads |
//! | [`shares`] | shares of a bounded capacity, so that one caller never takes all of it |
//! | [`grpc`] | a gRPC server on a given listener, with health checks, reflection and a span per call |
//! | [`in_process`] | connections to a role that no other process calls |
//! | [`rpc_metrics`] | the metrics of a gRPC server |
//! | [`peer`] | channels to another role, balanced over its healthy addresses |
//! | [`route`] | the ways to call a role, apart from each other |
//! | [`tls`] | TLS of ports and of calls, from files that may change |
//! | [`trace`] | trace context propagation in gRPC calls |
//! | [`wait`] | work that waits for another part of Herald, such as the store |
//! | [`shutdown`] | SIGINT and SIGTERM, and bounded draining |

pub mod config;
pub mod connections;
pub mod grpc;
pub mod health;
pub mod http;
pub mod in_process;
pub mod peer;
pub mod ready_metrics;
pub mod route;
pub mod rpc_metrics;
pub mod shares;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod wait;

pub use herald_metrics as metrics;
