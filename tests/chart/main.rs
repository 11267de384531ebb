//! Tests of the Helm chart that need no cluster: what it renders, and what it refuses.
//!
//! They run the programs helm, helm3, helm-docs, kubeconform and promtool where they are installed. Without helm they print a
//! sentence and pass, unless `TESTS_REQUIRE_HELM=1`; without promtool, unless `TESTS_REQUIRE_SERVERS=1`. With `KUBECONFIG`, that
//! cluster checks the objects too (as a dry run).

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails at the first unexpected error"
)]

mod access;
mod api;
mod auth;
mod defaults;
mod golden;
mod helm;
mod monitoring;
mod refusals;
mod rules;
mod scaling;
mod tls;
mod unusual;
