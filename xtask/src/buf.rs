//! buf, from the PATH or from a Python package that carries the binary.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The package, with the version that was seen to work.
const PACKAGE: &str = "buf-bin==1.75.0";

/// Runs buf at the root of the repository.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the crate is in the repository")?;
    let buf = locate(root)?;
    call(Command::new(buf).args(arguments).current_dir(root))
}

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
        call(Command::new("python3").args(["-m", "venv"]).arg(&tools))?;
        call(Command::new(tools.join("bin/pip")).args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            PACKAGE,
        ]))?;
    }
    Ok(buf)
}

fn call(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{command:?} can't be run"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
