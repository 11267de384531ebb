//! Every exported metric follows the naming rule of ARCHITECTURE.md and is documented in the README of its service.

use std::{collections::BTreeSet, path::Path, time::Duration};

use harness::{Herald, Options, Process, until};

use crate::{HERALD, surface::http_get};

const LIMIT: Duration = Duration::from_mins(1);

/// The metrics of the continuous audit have its name as prefix and are documented by the service that runs it.
const AUDIT: (&str, &str) = ("audit", "deadletter");

/// Services that export metrics with the text of their READMEs.
fn read_readmes() -> Vec<(String, String)> {
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

/// Metric names in the first column of a README's tables.
fn documented_metrics(readme: &str) -> BTreeSet<String> {
    readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `herald_")?.split('`').next())
        .map(|name| format!("herald_{name}"))
        .collect()
}

/// Exported metrics with their type, named as in queries and READMEs.
fn exported_metrics(metrics: &str) -> Vec<(String, &str)> {
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
    let mut metrics = http_get(herald.http(), "/metrics").await;
    // The one service that is no part of `herald up`.
    let nats = [("HERALD_NATS__URL".to_owned(), herald.nats())];
    let scaler = Process::start(HERALD, "scaler", &[], &nats).await;
    until("the scaler has read the consumers", LIMIT, async || {
        http_get(scaler.http(), "/metrics")
            .await
            .contains("herald_scaler_work_seconds{")
    })
    .await;
    metrics += &http_get(scaler.http(), "/metrics").await;
    let exported = exported_metrics(&metrics);
    let readmes = read_readmes();
    assert_eq!(readmes.len(), 9, "services with metrics");
    let mut undocumented = Vec::new();
    for (name, kind) in &exported {
        let part = name
            .strip_prefix("herald_")
            .and_then(|rest| rest.split('_').next())
            .unwrap_or_default();
        let service = if part == AUDIT.0 { AUDIT.1 } else { part };
        let readme = readmes.iter().find(|(of, _)| of == service);
        let (_, readme) = readme.unwrap_or_else(|| panic!("{name}: {part} is not a service of Herald"));
        if *kind == "histogram" {
            assert!(
                name.ends_with("_seconds") || name.ends_with("_bytes"),
                "{name}: the name of a histogram must end in its unit"
            );
        }
        if !documented_metrics(readme).contains(name) {
            undocumented.push(name);
        }
    }
    assert!(
        undocumented.is_empty(),
        "not documented in the README of their service: {undocumented:?}"
    );
    let exported: BTreeSet<_> = exported.into_iter().map(|(name, _)| name).collect();
    for (service, readme) in &readmes {
        let missing: Vec<_> = documented_metrics(readme)
            .difference(&exported)
            .filter(|name| !is_registered(service, name))
            .cloned()
            .collect();
        assert!(
            missing.is_empty(),
            "documented in the README of {service} but not registered: {missing:?}"
        );
    }
}

/// Whether the service's `metrics.rs` has the metric. The exporter omits a metric with labels until it has a value.
fn is_registered(service: &str, name: &str) -> bool {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../services/{service}/src/metrics.rs"));
    let source = std::fs::read_to_string(source).unwrap();
    let name = name.strip_prefix("herald_").unwrap_or(name);
    let name = name.strip_suffix("_total").unwrap_or(name);
    // Registered under its name, or as a field of which a macro makes the name.
    let field = name.strip_prefix(&format!("{service}_")).unwrap_or(name);
    let mut words = source.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.any(|word| word == name || word == field)
}

#[test]
fn only_registered_metrics_count_as_such() {
    assert!(is_registered("push", "herald_push_sends_total"));
    assert!(!is_registered("push", "herald_push_sen_total"));
}
