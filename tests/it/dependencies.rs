//! Crate dependencies follow the rules of ARCHITECTURE.md. The tests read the manifests.

use std::path::Path;

/// Package name of a manifest and the Herald packages in its `[dependencies]`.
fn manifest(path: &Path) -> (String, Vec<String>) {
    let text = std::fs::read_to_string(path).unwrap();
    let mut section = "";
    let mut package = String::new();
    let mut dependencies = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        match section {
            "[package]" if name == "name" => line.split('"').nth(1).unwrap().clone_into(&mut package),
            "[dependencies]" if name.starts_with("herald") => dependencies.push(name.to_owned()),
            _ => {}
        }
    }
    (package, dependencies)
}

/// Packages in one folder of the workspace with their Herald dependencies.
fn packages(folder: &str) -> Vec<(String, Vec<String>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let dirs = std::fs::read_dir(folder).unwrap();
    dirs.map(|dir| dir.unwrap().path().join("Cargo.toml"))
        .filter(|path| path.is_file())
        .map(|path| manifest(&path))
        .collect()
}

#[test]
fn only_the_binary_depends_on_services() {
    let services = packages("services");
    let is_service = |name: &String| services.iter().any(|(service, _)| service == name);
    assert!(services.len() >= 8, "{services:?}");
    for (package, dependencies) in services.iter().chain(&packages("crates")) {
        let found: Vec<_> = dependencies.iter().filter(|name| is_service(name)).collect();
        if package == "herald" {
            assert!(!found.is_empty(), "the binary is made of the services");
        } else {
            assert!(found.is_empty(), "{package} depends on {found:?}");
        }
    }
}

#[test]
fn the_lowest_crates_depend_on_no_herald_crate() {
    let crates = packages("crates");
    for (package, allowed) in [
        ("herald-model", &[] as &[&str]),
        ("herald-metrics", &[]),
        ("herald-secret", &[]),
        ("herald-local-process", &[]),
        ("herald-trace", &[]),
        (
            "herald-runtime",
            &["herald-metrics", "herald-secret", "herald-trace"],
        ),
    ] {
        let (_, dependencies) = crates.iter().find(|(name, _)| name == package).unwrap();
        let found: Vec<_> = dependencies
            .iter()
            .filter(|name| !allowed.contains(&name.as_str()))
            .collect();
        assert!(found.is_empty(), "{package} depends on {found:?}");
    }
}
