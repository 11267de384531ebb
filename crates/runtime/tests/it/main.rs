//! What needs a process of its own: telemetry is started once a process.

#![allow(clippy::unwrap_used)]

mod otlp;
