//! Makes Herald's container image as an OCI archive, without a container engine and without a base image.
//!
//! The same binary always makes the same archive, byte by byte: files are sorted, times are fixed, and time zones and
//! certificates come from crates. The image has the layout of the one that the Dockerfile makes: a dynamically linked binary,
//! its C library beside it, and the user 65532.

mod oci;
mod rootfs;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, root};

/// Maximum size of the archive, bytes.
const BYTES_MAX: usize = 40_000_000;

/// Arguments of `cargo xtask image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The herald binary; without it, one is built with the profile `dist`
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// The archive to write
    #[arg(long, value_name = "FILE", default_value = "target/herald.tar")]
    out: PathBuf,
    /// The name of the image
    #[arg(long, value_name = "NAME", default_value = concat!("localhost/herald:", env!("CARGO_PKG_VERSION")))]
    name: String,
}

/// Writes the archive.
///
/// # Errors
/// The build fails, the binary is none for Linux, a library that it needs is missing, or the archive is too large.
pub(crate) fn run(args: &Args) -> Result<()> {
    make(args.binary.as_deref(), &args.out, &args.name)
}

/// Writes the archive of an image; without a binary, one is built.
///
/// # Errors
/// As [`run`].
pub(crate) fn make(binary: Option<&Path>, out: &Path, name: &str) -> Result<()> {
    let binary = match binary {
        Some(binary) => binary.to_owned(),
        None => build()?,
    };
    let archive = archive(&binary, name, created_seconds()?)?;
    if let Some(parent) = out.parent() {
        fs::create_dir_all(parent).with_context(|| format!("can't create {}", parent.display()))?;
    }
    fs::write(out, &archive).with_context(|| format!("can't write {}", out.display()))?;
    let size = archive.len();
    println!(
        "{}: {} of at most {} MB, image {name}, from {}",
        out.display(),
        megabytes(size),
        BYTES_MAX / 1_000_000,
        binary.display()
    );
    ensure!(
        size <= BYTES_MAX,
        "the image has {} MB, more than {} MB: is the binary stripped and built with the profile dist?",
        megabytes(size),
        BYTES_MAX / 1_000_000
    );
    Ok(())
}

/// The archive of an image with this binary.
fn archive(binary: &Path, name: &str, created_seconds: u64) -> Result<Vec<u8>> {
    let bytes = fs::read(binary).with_context(|| format!("can't read {}", binary.display()))?;
    let architecture = architecture(&bytes)
        .with_context(|| format!("{} is no program for Linux on amd64 or arm64", binary.display()))?;
    let files = rootfs::files(binary, bytes)?;
    oci::archive(&files, name, architecture, created_seconds)
}

/// The architecture of an ELF file, as OCI names it.
fn architecture(elf: &[u8]) -> Option<&'static str> {
    match (elf.get(..4)?, elf.get(18..20)?) {
        (b"\x7fELF", [0x3e, 0]) => Some("amd64"),
        (b"\x7fELF", [0xb7, 0]) => Some("arm64"),
        _ => None,
    }
}

/// Builds herald as it is released.
fn build() -> Result<PathBuf> {
    cargo::run(
        Command::new(cargo::program())
            .args(["build", "--locked", "--profile", "dist", "--package", "herald"])
            .current_dir(root()),
    )?;
    Ok(cargo::target_dir().join("dist/herald"))
}

/// The time that the image and its files have: `SOURCE_DATE_EPOCH`, or 1970.
fn created_seconds() -> Result<u64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("SOURCE_DATE_EPOCH must be seconds since 1970, is {text:?}")),
        Err(_) => Ok(0),
    }
}

fn megabytes(bytes: usize) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flate2::read::GzDecoder;
    use serde_json::Value;

    use super::*;

    /// A small program that needs a C library.
    const PROGRAM: &str = "/bin/sh";

    fn entries(tar: impl std::io::Read) -> BTreeMap<String, (tar::Header, Vec<u8>)> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let header = entry.header().clone();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            (name, (header, bytes))
        });
        entries.collect()
    }

    #[test]
    fn the_same_binary_makes_the_same_archive() {
        let make = || archive(Path::new(PROGRAM), "localhost/herald:test", 0).unwrap();
        assert!(make() == make());
    }

    #[test]
    fn the_archive_is_an_image_that_runs_without_root() {
        let archive = archive(Path::new(PROGRAM), "localhost/herald:test", 86_400).unwrap();
        let files = entries(archive.as_slice());
        let json = |name: &str| -> Value { serde_json::from_slice(&files[name].1).unwrap() };
        let blob = |descriptor: &Value| -> &Vec<u8> {
            let digest = descriptor["digest"].as_str().unwrap();
            let bytes = &files[&format!("blobs/{}", digest.replace(':', "/"))].1;
            assert_eq!(oci::digest(bytes), digest, "the name of a blob is its digest");
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
        let index = json("index.json");
        let descriptor = &index["manifests"][0];
        assert_eq!(
            descriptor["annotations"]["io.containerd.image.name"],
            "localhost/herald:test"
        );
        let manifest: Value = serde_json::from_slice(blob(descriptor)).unwrap();
        let config: Value = serde_json::from_slice(blob(&manifest["config"])).unwrap();
        assert_eq!(config["os"], "linux");
        assert_eq!(config["created"], "1970-01-02T00:00:00Z");
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Entrypoint"][0], "/herald");

        let mut layer = Vec::new();
        let compressed = blob(&manifest["layers"][0]).as_slice();
        std::io::Read::read_to_end(&mut GzDecoder::new(compressed), &mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], oci::digest(&layer));
        let root = entries(layer.as_slice());
        assert_eq!(root["herald"].1, fs::read(PROGRAM).unwrap());
        assert_eq!(root["herald"].0.mode().unwrap(), 0o755);
        assert_eq!(root["tmp/"].0.mode().unwrap(), 0o1777);
        let text = |name: &str| String::from_utf8(root[name].1.clone()).unwrap();
        assert!(text("etc/passwd").contains(":65532:65532:"));
        assert!(text("etc/ssl/certs/ca-certificates.crt").contains("-----BEGIN CERTIFICATE-----"));
        assert!(root["usr/share/zoneinfo/Europe/Berlin"].1.starts_with(b"TZif"));
        assert!(
            root.keys().any(|name| name.contains("libc.so")),
            "{PROGRAM} needs libc"
        );
        for (name, (header, _)) in &root {
            assert_eq!(header.mtime().unwrap(), 86_400, "{name}");
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0), "{name}");
        }
    }

    #[test]
    fn a_file_that_is_no_program_is_refused() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let error = archive(&manifest, "localhost/herald:test", 0).unwrap_err();
        assert!(error.to_string().contains("is no program for Linux"), "{error}");
    }
}
