//! Writes what is made from the Helm chart and checked in: plain manifests, golden files, and the README of the chart. Tests
//! compare them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{cargo, root};

/// Kinds that the values of the golden files use, and that a cluster may lack.
const API_VERSIONS: [&str; 4] = [
    "cert-manager.io/v1",
    "keda.sh/v1alpha1",
    "gateway.networking.k8s.io/v1/GRPCRoute",
    "monitoring.coreos.com/v1",
];

/// The begin of k8s/herald.yaml.
const MANIFESTS_HEADER: &str = "\
# Herald with its bundled dependencies, for those without Helm. Made from helm/herald by `cargo xtask render`; don't edit it.
#   kubectl create namespace herald
#   kubectl apply --namespace herald --filename k8s/herald.yaml
";

/// Arguments of `cargo xtask render`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The herald binary that prints the permissions for NATS; without it, one is built
    #[arg(long, value_name = "PATH")]
    herald: Option<PathBuf>,
}

/// Writes all files.
///
/// # Errors
/// herald can't be built, or a program is missing or fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let permissions = permissions(args.herald.as_deref())?;
    write("helm/herald/files/nats-authorization.conf", &permissions)?;
    readme()?;
    let default = template(&[], &["--skip-tests"])?;
    write("k8s/herald.yaml", &format!("{MANIFESTS_HEADER}{default}"))?;
    for (name, values) in cases()? {
        write(
            &format!("tests/chart/golden/{name}.yaml"),
            &template(&values, &[])?,
        )?;
    }
    Ok(())
}

/// The `authorization` block of nats-server.
fn permissions(herald: Option<&Path>) -> Result<String> {
    let herald = if let Some(herald) = herald {
        fs::canonicalize(herald).with_context(|| format!("can't find {}", herald.display()))?
    } else {
        cargo::run(
            Command::new(cargo::program())
                .args(["build", "--locked", "--package", "herald"])
                .current_dir(root()),
        )?;
        cargo::target_dir().join("debug/herald")
    };
    output(Command::new(herald).args(["topology", "permissions"]))
}

/// The README of the chart, from its template and the comments of its values.
fn readme() -> Result<()> {
    cargo::run(
        Command::new("helm-docs")
            .args(["--chart-search-root", "helm", "--log-level", "warning"])
            .current_dir(root()),
    )
    .context("install helm-docs, which writes helm/herald/README.md: https://github.com/norwoodj/helm-docs")
}

/// The golden files by name, with their values in the chart's folder `examples`.
fn cases() -> Result<BTreeMap<String, Vec<String>>> {
    let text = fs::read_to_string(root().join("tests/chart/golden/cases.json"))?;
    let cases: BTreeMap<String, Value> = serde_json::from_str(&text)?;
    let values = |case: &Value| -> Option<Vec<String>> {
        let names = case["values"].as_array()?.iter();
        names.map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let cases = cases.iter().map(|(name, case)| {
        let values = values(case).with_context(|| format!("cases.json: {name} has no list of values"))?;
        Ok((name.clone(), values))
    });
    cases.collect()
}

/// What the chart renders, without the blank lines that some versions of Helm write between documents.
fn template(values: &[String], arguments: &[&str]) -> Result<String> {
    let chart = root().join("helm/herald");
    let mut helm = Command::new("helm");
    helm.args(["template", "herald"]).arg(&chart);
    helm.args(["--namespace", "herald", "--kube-version", "1.34.0"])
        .args(arguments);
    for version in API_VERSIONS {
        helm.args(["--api-versions", version]);
    }
    for name in values {
        helm.arg("--values").arg(chart.join("examples").join(name));
    }
    let text = output(&mut helm).context("install Helm 4 or 3, which renders the chart: https://helm.sh")?;
    let documents: Vec<&str> = text
        .split("\n---\n")
        .map(|document| document.trim_matches('\n'))
        .collect();
    ensure!(documents.len() > 1, "helm template wrote nothing");
    Ok(documents.join("\n---\n") + "\n")
}

/// The standard output of a program.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("can't run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).context("the output is no UTF-8")
}

fn write(path: &str, text: &str) -> Result<()> {
    let file = root().join(path);
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent).with_context(|| format!("can't create {}", parent.display()))?;
    }
    fs::write(&file, text).with_context(|| format!("can't write {path}"))?;
    println!("{path}");
    Ok(())
}
