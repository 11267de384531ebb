//! Shared parts of Herald's gRPC calls.
//!
//! | module | content |
//! |---|---|
//! | [`status`] | errors: `google.rpc.Status` with details |
//! | [`fields`] | validation of request fields |
//! | [`paging`] | page sizes and opaque page tokens (AIP-158) |
//!
//! `herald_runtime::grpc` has the server.

pub mod fields;
pub mod paging;
pub mod status;
