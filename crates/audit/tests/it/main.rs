//! Audits of a real broker and a real store. Tests cause each kind of finding and check that the audit reports exactly
//! that finding. Without these tests, an audit without findings would prove nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod findings;
mod harness;
mod in_flight;
mod redriven;
mod repairs;
mod views;
