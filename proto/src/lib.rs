//! Herald's Protobuf types and gRPC services: [`v1`] is the public API, [`mesh_v1`] has the bodies of the messages on
//! JetStream subjects, [`externalscaler`] is the contract with KEDA. All are generated from the .proto files of this crate.

#![allow(clippy::pedantic, missing_docs, unreachable_pub)]

mod convert;
mod messages;
mod methods;

pub use convert::{lane, timestamp_from_proto, timestamp_to_proto};
pub use messages::EVENT_CHUNKS_MAX;
pub use methods::{Method, MethodKind, all_methods, is_unary, method_kind};

/// The contract of KEDA's external scalers, `externalscaler`.
pub mod externalscaler {
    tonic::include_proto!("externalscaler");
}

/// Nested like the packages, because generated code refers to other packages by `super`.
mod herald {
    pub mod v1 {
        tonic::include_proto!("herald.v1");
    }

    pub mod mesh {
        pub mod v1 {
            tonic::include_proto!("herald.mesh.v1");
        }
    }
}

/// The bodies of the messages on JetStream subjects, `herald.mesh.v1`.
pub use herald::mesh::v1 as mesh_v1;
/// The public API, `herald.v1`.
pub use herald::v1;

/// The encoded file descriptor set of the public API, for gRPC reflection.
pub const API_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/api_descriptors.bin"));

/// The encoded file descriptor set of [`externalscaler`], for gRPC reflection.
pub const SCALER_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/scaler_descriptors.bin"));

/// The encoded file descriptor set of Herald's packages, imports included.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
