//! What every gRPC call of Herald has in common.
//!
//! | module | gives |
//! |---|---|
//! | [`status`] | errors as callers see them: `google.rpc.Status` with details |
//! | [`fields`] | checks of a request that report every bad field at once |
//! | [`paging`] | page sizes and opaque page tokens (AIP-158) |
//!
//! The server that these calls run in is `herald_runtime::grpc`.

pub mod fields;
pub mod paging;
pub mod status;
