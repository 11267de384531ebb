//! Failpoints are for tests: nothing of them may be in the program that is shipped.

use std::process::Command;

use anyhow::{Context as _, ensure};

/// The crate that does what failpoints say; it comes with their feature only.
const CRATE: &str = "fail v";

/// Asks cargo what `herald` is made of, as it is built for a release.
pub(crate) fn run() -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
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
        .context("cargo can't be run")?;
    ensure!(
        output.status.success(),
        "cargo tree failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let tree = String::from_utf8_lossy(&output.stdout);
    ensure!(
        tree.contains("herald-failpoints v"),
        "the macros of failpoints are gone from herald: mend this check"
    );
    let found = tree.lines().find(|line| line.starts_with(CRATE));
    ensure!(
        found.is_none(),
        "herald has failpoints in it: {}",
        found.unwrap_or_default()
    );
    Ok(())
}
