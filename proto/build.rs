//! Compiles the .proto files with protox; the build needs no protoc.

use std::{env, fs, path::Path};

/// The public API.
const API: &[&str] = &[
    "herald/v1/analytics.proto",
    "herald/v1/audit.proto",
    "herald/v1/deadletter.proto",
    "herald/v1/delivery.proto",
    "herald/v1/device.proto",
    "herald/v1/graph.proto",
    "herald/v1/mesh.proto",
    "herald/v1/post.proto",
    "herald/v1/preference.proto",
    "herald/v1/timeline.proto",
    "herald/v1/types.proto",
];

/// Messages and services inside the mesh.
const MESH: &[&str] = &[
    "herald/mesh/v1/control.proto",
    "herald/mesh/v1/deadletter.proto",
    "herald/mesh/v1/followers.proto",
    "herald/mesh/v1/messages.proto",
];

/// The contract of KEDA's external scalers.
const SCALER: &str = "externalscaler/externalscaler.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=externalscaler");
    println!("cargo:rerun-if-changed=google");
    println!("cargo:rerun-if-changed=herald");
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_files(API)?;
    let out = env::var("OUT_DIR")?;
    // gRPC reflection serves this set, comments included.
    fs::write(
        Path::new(&out).join("api_descriptors.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    compiler.open_files(MESH)?;
    fs::write(
        Path::new(&out).join("descriptors.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    tonic_prost_build::configure()
        .extern_path(".google.rpc", "::tonic_types::pb")
        // Ordered maps: equal messages have equal encodings.
        .btree_map(".")
        .bytes(".herald.mesh.v1")
        .compile_fds(compiler.file_descriptor_set())?;

    let mut scaler = protox::Compiler::new(["."])?;
    scaler
        .include_source_info(true)
        .include_imports(true)
        .open_file(SCALER)?;
    fs::write(
        Path::new(&out).join("scaler_descriptors.bin"),
        scaler.encode_file_descriptor_set(),
    )?;
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_fds(scaler.file_descriptor_set())?;
    Ok(())
}
