//! Compiles the .proto files with protox; the build needs no protoc.

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::Path};

/// The public API.
const API: &[&str] = &[
    "herald/v1/analytics.proto",
    "herald/v1/audit.proto",
    "herald/v1/deadletter.proto",
    "herald/v1/delivery.proto",
    "herald/v1/device.proto",
    "herald/v1/graph.proto",
    "herald/v1/key.proto",
    "herald/v1/mesh.proto",
    "herald/v1/post.proto",
    "herald/v1/preference.proto",
    "herald/v1/timeline.proto",
    "herald/v1/types.proto",
    "herald/v1/user_data.proto",
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

    let served = [compiler.file_descriptor_set(), scaler.file_descriptor_set()];
    let methods = served.iter().flat_map(|set| &set.file).flat_map(|file| {
        file.service.iter().flat_map(move |service| {
            let path = format!("/{}.{}/", file.package(), service.name());
            let of_service = service.method.iter();
            of_service.map(move |method| (method.name().to_owned(), format!("{path}{}", method.name())))
        })
    });
    fs::write(Path::new(&out).join("methods.rs"), method_enum(methods)?)?;
    Ok(())
}

/// The source of the enum `Method`: a variant for each method, with the name of the method.
fn method_enum(
    methods: impl Iterator<Item = (String, String)>,
) -> Result<String, Box<dyn std::error::Error>> {
    let mut paths = BTreeMap::new();
    for (name, path) in methods {
        if let Some(other) = paths.insert(name, path.clone()) {
            return Err(format!("{path} and {other} have one name: rename one of them").into());
        }
    }
    let (mut variants, mut all, mut to_path, mut from_path) =
        (String::new(), String::new(), String::new(), String::new());
    for (name, path) in &paths {
        writeln!(variants, "    /// `{path}`\n    {name},")?;
        writeln!(all, "        Self::{name},")?;
        writeln!(to_path, "            Self::{name} => {path:?},")?;
        writeln!(from_path, "            {path:?} => Self::{name},")?;
    }
    Ok(format!(
        "/// A method that roles of Herald serve, the internal ones and those for KEDA included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {{
{variants}}}

impl Method {{
    /// All methods, by name.
    pub const ALL: [Self; {}] = [
{all}    ];

    /// The path of its calls, `/PACKAGE.SERVICE/METHOD`.
    pub const fn path(self) -> &'static str {{
        match self {{
{to_path}        }}
    }}

    /// The method that the path of a call names.
    pub fn from_path(path: &str) -> Option<Self> {{
        Some(match path {{
{from_path}            _ => return None,
        }})
    }}
}}
",
        paths.len()
    ))
}
