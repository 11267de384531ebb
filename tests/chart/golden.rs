//! What the chart renders is checked in, so that a change of a template shows what it does to the objects.

use std::{collections::BTreeMap, fs};

use serde::Deserialize;

use crate::helm::{Helm, Input, Objects, id, program, repository};

/// The values of a golden file.
#[derive(Debug, Deserialize)]
struct Case {
    /// Files in the chart's folder `examples`.
    values: Vec<String>,
}

/// The cases by name; `cargo xtask render` reads the same file.
pub(crate) fn cases() -> Vec<(String, Input)> {
    let text = fs::read_to_string(folder().join("cases.json")).unwrap();
    let cases: BTreeMap<String, Case> = serde_json::from_str(&text).unwrap();
    let inputs = cases
        .into_iter()
        .map(|(name, case)| (name, Input::examples(&case.values)));
    inputs.collect()
}

fn folder() -> std::path::PathBuf {
    repository().join("tests/chart/golden")
}

/// Asserts that two renderings have the same objects, and names those that differ.
fn same(actual: Objects, expected: Objects, what: &str) {
    let (actual, expected) = (actual.sorted(), expected.sorted());
    let ids = |objects: &Objects| objects.0.iter().map(id).collect::<Vec<_>>();
    assert_eq!(ids(&actual), ids(&expected), "{what}");
    for (actual, expected) in actual.0.iter().zip(&expected.0) {
        assert_eq!(actual, expected, "{what}: {}", id(actual));
    }
}

#[test]
fn the_golden_files_are_what_the_chart_renders() {
    let Some(helm) = Helm::find() else { return };
    for (name, input) in cases() {
        let golden = fs::read_to_string(folder().join(format!("{name}.yaml"))).unwrap();
        same(
            helm.objects(&input),
            Objects::parse(&golden),
            &format!("tests/chart/golden/{name}.yaml is old: run `cargo xtask render`"),
        );
    }
}

#[test]
fn the_plain_manifests_are_what_the_chart_renders() {
    let Some(helm) = Helm::find() else { return };
    let input = Input {
        arguments: vec!["--skip-tests"],
        ..Input::default()
    };
    let manifests = fs::read_to_string(repository().join("k8s/herald.yaml")).unwrap();
    same(
        helm.objects(&input),
        Objects::parse(&manifests),
        "k8s/herald.yaml is old: run `cargo xtask render`",
    );
}

#[test]
fn two_renderings_are_the_same() {
    let Some(helm) = Helm::find() else { return };
    for (name, input) in cases() {
        assert!(helm.text(&input) == helm.text(&input), "{name}");
    }
}

#[test]
fn helm_3_and_4_render_the_same_objects() {
    let (Some(helm), Some(helm_3)) = (Helm::find(), Helm::find_3()) else {
        return;
    };
    for (name, input) in cases() {
        same(helm_3.objects(&input), helm.objects(&input), &name);
    }
}

#[test]
fn the_readme_lists_the_values() {
    let Some(docs) = program("helm-docs") else {
        println!("SKIPPED: helm-docs is not on the PATH, so the README of the chart was not compared");
        return;
    };
    let run = std::process::Command::new(docs)
        .args(["--dry-run", "--chart-search-root", "helm", "--log-level", "error"])
        .current_dir(repository())
        .output()
        .unwrap();
    let made = String::from_utf8(run.stdout).unwrap();
    let readme = fs::read_to_string(repository().join("helm/herald/README.md")).unwrap();
    assert!(
        made.trim() == readme.trim(),
        "helm/herald/README.md is old: run `cargo xtask render`"
    );
}
