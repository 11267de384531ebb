//! Tests of the Helm chart that need no cluster: what it renders, and what it refuses.
//!
//! They run the programs helm, helm3, helm-docs and kubeconform where they are installed. Without helm they print a sentence and
//! pass, unless `TESTS_REQUIRE_HELM=1`. With `KUBECONFIG`, that cluster checks the objects too (as a dry run).

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails at the first unexpected error"
)]

mod api;
mod defaults;
mod golden;
mod helm;
mod refusals;
mod rules;
mod scaling;
mod unusual;
