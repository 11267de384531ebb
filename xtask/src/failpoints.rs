//! Checks that a release of herald has no failpoints: they are for tests only.

use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::cargo;

/// The crate that runs failpoints, in the output of `cargo tree`. Only the feature `failpoints` depends on it.
const CRATE: &str = "fail v";

/// Searches the dependencies of a release build of herald.
///
/// # Errors
/// herald depends on the crate, or `cargo tree` fails.
pub(crate) fn run() -> anyhow::Result<()> {
    let output = Command::new(cargo::program())
        .args([
            "tree",
            "--locked",
            "--package",
            "herald",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
        ])
        .output()
        .context("can't run cargo")?;
    ensure!(
        output.status.success(),
        "cargo tree failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let tree = String::from_utf8_lossy(&output.stdout);
    ensure!(
        tree.contains("herald-failpoints v"),
        "herald no longer depends on herald-failpoints: update this check"
    );
    let found = tree.lines().find(|line| line.starts_with(CRATE));
    ensure!(
        found.is_none(),
        "a release of herald has failpoints: {}",
        found.unwrap_or_default()
    );
    Ok(())
}
