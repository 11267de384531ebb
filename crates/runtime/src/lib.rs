//! What every service needs to run and none should write twice.
//!
//! | module | gives |
//! |---|---|
//! | [`config`] | settings from defaults < file < environment < flags, checked, printable without secrets |
//! | [`telemetry`] | logs, and traces over OTLP when they are wanted |
//! | [`metrics`] | the registry that `/metrics` shows |
//! | [`http`] | `/healthz`, `/readyz`, `/metrics` |
//! | [`grpc`] | a gRPC server on a given listener, with health, reflection and a span a call |
//! | [`trace`] | the trace context in and out of gRPC calls |
//! | [`shutdown`] | Ctrl-C and SIGTERM, and a bounded time to drain |

pub mod config;
pub mod grpc;
pub mod http;
pub mod metrics;
pub mod shutdown;
pub mod telemetry;
pub mod trace;
