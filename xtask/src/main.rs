//! Project tasks that cargo doesn't have: `cargo xtask --help`.

mod buf;
mod cargo;
mod e2e;
mod failpoints;
mod image;
mod render;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

/// Project tasks that cargo doesn't have.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run buf, the linter of the .proto files; installs it into target/tools if it isn't on the PATH
    Buf {
        /// Arguments of buf, such as `lint` or `format --diff`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        arguments: Vec<String>,
    },
    /// Test the chart on the cluster of KUBECONFIG: installs Herald, and scales, replaces and deletes its pods under load
    E2e(e2e::Args),
    /// Check that a release build of herald has no failpoints
    Failpoints,
    /// Make the container image as an OCI archive, without a container engine
    Image(image::Args),
    /// Write what is made from the Helm chart: k8s/herald.yaml, golden files, NATS permissions, its README
    Render(render::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Buf { arguments } => buf::run(&arguments),
        Task::E2e(args) => e2e::run(&args),
        Task::Failpoints => failpoints::run(),
        Task::Image(args) => image::run(&args),
        Task::Render(args) => render::run(&args),
    }
}

/// The root of the repository.
fn root() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir).into()
}
