//! Every metric that `herald up` exports follows the rule of ARCHITECTURE.md and stands in its service's README.

use std::{collections::BTreeSet, path::Path};

use harness::{Herald, Options};

use crate::{HERALD, surface::get};

/// The metrics of the continuous audit are named after it and told of in the README of the service that runs it.
const AUDIT: (&str, &str) = ("audit", "deadletter");

/// The services that export metrics, and the text of their READMEs.
fn readmes() -> Vec<(String, String)> {
    let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("../services");
    let mut readmes = Vec::new();
    for entry in std::fs::read_dir(services).unwrap() {
        let dir = entry.unwrap().path();
        if dir.join("src/metrics.rs").is_file() {
            let service = dir.file_name().unwrap().to_str().unwrap().to_owned();
            readmes.push((service, std::fs::read_to_string(dir.join("README.md")).unwrap()));
        }
    }
    readmes
}

/// The names in the first column of a README's tables that are metrics'.
fn documented(readme: &str) -> BTreeSet<String> {
    readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `herald_")?.split('`').next())
        .map(|name| format!("herald_{name}"))
        .collect()
}

/// The name of an exported metric as README and queries have it, and its type.
fn exported(metrics: &str) -> Vec<(String, &str)> {
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let total = if kind == "counter" { "_total" } else { "" };
            (format!("{name}{total}"), kind)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_follows_the_naming_rule_and_is_documented() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let metrics = get(herald.http(), "/metrics").await;
    let exported = exported(&metrics);
    let readmes = readmes();
    assert_eq!(readmes.len(), 7, "services with metrics");
    let mut undocumented = Vec::new();
    for (name, kind) in &exported {
        let part = name
            .strip_prefix("herald_")
            .and_then(|rest| rest.split('_').next())
            .unwrap_or_default();
        let service = if part == AUDIT.0 { AUDIT.1 } else { part };
        let readme = readmes.iter().find(|(of, _)| of == service);
        let (_, readme) = readme.unwrap_or_else(|| panic!("{name}: {part} is no part of Herald"));
        if *kind == "histogram" {
            assert!(
                name.ends_with("_seconds") || name.ends_with("_bytes"),
                "{name}: a histogram ends in its unit"
            );
        }
        if !documented(readme).contains(name) {
            undocumented.push(name);
        }
    }
    assert!(
        undocumented.is_empty(),
        "not in their service's README: {undocumented:?}"
    );
    let exported: BTreeSet<_> = exported.into_iter().map(|(name, _)| name).collect();
    for (service, readme) in &readmes {
        let gone: Vec<_> = documented(readme).difference(&exported).cloned().collect();
        assert!(
            gone.is_empty(),
            "in the README of {service}, but not exported: {gone:?}"
        );
    }
}
