//! The format of the image: an OCI image layout in a tar archive.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::rootfs::{Entry, Files};

/// An archive with one image of one layer. `docker load`, `podman load`, `skopeo` and containerd read it.
pub(super) fn archive(
    files: &Files,
    name: &str,
    architecture: &str,
    created_seconds: u64,
) -> Result<Vec<u8>> {
    let layer = tar(files, created_seconds)?;
    let created = jiff::Timestamp::from_second(i64::try_from(created_seconds)?)
        .context("the time of the image is out of range")?
        .to_string();
    let config = to_json(&json!({
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": {
            "User": "65532:65532",
            "Entrypoint": ["/herald"],
            "Env": ["PATH=/"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "herald",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        "history": [{"created": created, "created_by": "cargo xtask image"}],
    }))?;
    let compressed = gzip(&layer)?;
    let manifest = to_json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &compressed)],
    }))?;
    let mut of_manifest = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    of_manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
    // containerd and Docker read the first name, podman and skopeo the second one.
    of_manifest["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name,
    });
    let index = to_json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [of_manifest],
    }))?;
    let mut layout = Files::new();
    layout.insert("blobs".into(), Entry::Directory(0o755));
    layout.insert("blobs/sha256".into(), Entry::Directory(0o755));
    for blob in [config, compressed, manifest] {
        let path = format!("blobs/{}", digest(&blob).replace(':', "/"));
        layout.insert(path, Entry::File(0o644, blob));
    }
    layout.insert("index.json".into(), Entry::File(0o644, index));
    let version = to_json(&json!({"imageLayoutVersion": "1.0.0"}))?;
    layout.insert("oci-layout".into(), Entry::File(0o644, version));
    tar(&layout, created_seconds)
}

/// `sha256:` and the digest in hexadecimal digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

fn to_json(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("can't write JSON")
}

/// A tar archive of sorted files that belong to root.
fn tar(files: &Files, created_seconds: u64) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, entry) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(created_seconds);
        header.set_uid(0);
        header.set_gid(0);
        match entry {
            Entry::Directory(mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                builder.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Entry::File(mode, content) => {
                header.set_mode(*mode);
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, path, content.as_slice())?;
            }
        }
    }
    builder.into_inner().context("can't write a tar archive")
}

/// Compressed without a time and a name, which would differ from run to run.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish().context("can't compress the layer")
}
