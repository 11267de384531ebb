//! Tests that need a process of their own because telemetry is started once per process.

#![allow(clippy::unwrap_used)]

mod otlp;
