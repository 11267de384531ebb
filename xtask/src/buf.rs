//! Runs buf, from the PATH or from a Python package with the binary.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{cargo::run as run_command, root};

/// The Python package, pinned to a tested version.
const PACKAGE: &str = "buf-bin==1.75.0";

/// Runs buf in the root of the repository.
///
/// # Errors
/// buf can't be installed or started, or exits with a failure.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let root = root();
    let buf = locate(&root)?;
    run_command(Command::new(buf).args(arguments).current_dir(root))
}

/// Finds buf on the PATH, else installs it into target/tools.
fn locate(root: &Path) -> Result<PathBuf> {
    if Command::new("buf")
        .arg("--version")
        .output()
        .is_ok_and(|done| done.status.success())
    {
        return Ok("buf".into());
    }
    let tools = root.join("target/tools/buf");
    let buf = tools.join("bin/buf");
    if !buf.exists() {
        run_command(Command::new("python3").args(["-m", "venv"]).arg(&tools))?;
        run_command(Command::new(tools.join("bin/pip")).args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            PACKAGE,
        ]))?;
    }
    Ok(buf)
}
