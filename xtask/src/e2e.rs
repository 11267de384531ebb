//! Runs the end-to-end test on the cluster of `KUBECONFIG`.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, image, root};

/// The name of the image that the test installs, if it makes one.
const IMAGE: &str = "localhost/herald:e2e";

/// Arguments of `cargo xtask e2e`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An image that the cluster can pull or has; without it, one is made and given to --load
    #[arg(long, value_name = "IMAGE", conflicts_with = "binary")]
    image: Option<String>,
    /// The herald binary of the image; without it, one is built with the profile `dist`
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// The command that loads the archive of the image into the cluster: it gets the path as its last argument, such as
    /// `kind load image-archive`
    #[arg(long, value_name = "COMMAND", required_unless_present = "image")]
    load: Option<String>,
    /// More values for the chart, such as the images of the dependencies in a cluster without a registry
    #[arg(long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// The helm to use
    #[arg(long, default_value = "helm")]
    helm: String,
    /// Leave the release in the cluster
    #[arg(long)]
    keep: bool,
}

/// Makes and loads the image, and runs the test.
///
/// # Errors
/// A build, the command of `--load`, or the test fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        std::env::var_os("KUBECONFIG").is_some(),
        "KUBECONFIG is not set: it names the cluster to test on"
    );
    if args.image.is_none() {
        make_image(args)?;
    }
    let image = args.image.as_deref().unwrap_or(IMAGE);
    let mut test = Command::new(cargo::program());
    test.args(["test", "--locked", "--workspace", "--test", "e2e", "--"])
        .args(["--image", image, "--helm", &args.helm])
        .current_dir(root());
    for file in &args.values {
        let file = std::path::absolute(file).with_context(|| format!("can't find {}", file.display()))?;
        test.arg("--values").arg(file);
    }
    if args.keep {
        test.arg("--keep");
    }
    cargo::run(&mut test)
}

fn make_image(args: &Args) -> Result<()> {
    let archive = cargo::target_dir().join("herald-e2e.tar");
    image::make(args.binary.as_deref(), &archive, IMAGE)?;
    let load = args.load.as_deref().unwrap_or_default();
    let mut words = load.split_whitespace();
    let program = words.next().context("--load names no command")?;
    cargo::run(Command::new(program).args(words).arg(&archive))
}
