//! `herald config`: prints or checks the configuration of a server.

use clap::Subcommand;
use herald_cli::{context::Context, failure::Failure, output::Show};
use serde::Serialize;

use crate::{server::Config, settings::Settings};

const EXAMPLES: &str = "\
Examples:
  Write a file with all keys and their defaults:
    herald config print > herald.toml
  Print the effective configuration of a file and the environment:
    HERALD_FANOUT__SLICE_RECIPIENTS_MAX=32768 herald config print --config herald.toml
  Check a file, and the files and directories that it names, without starting a server:
    herald config check --config herald.toml

Layers, each overrides the ones before it:
  defaults; the file of --config; HERALD_… variables, with __ between section and key; flags.";

/// Print or check the effective configuration of a server
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print all keys as TOML, or as JSON with --output json; secrets are hidden
    #[command(after_long_help = EXAMPLES)]
    Print(Box<Settings>),
    /// Check the settings, and the files and directories that they name, as a start does
    ///
    /// Starts nothing. The error names the invalid key and its layer. It is not checked whether the ports are free, or
    /// whether another server has the data directory open.
    #[command(after_long_help = EXAMPLES)]
    Check(Box<Settings>),
}

/// The effective configuration.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Effective(Config);

impl Show for Effective {
    fn text(&self) -> String {
        herald_runtime::config::print(&self.0)
            .unwrap_or_else(|error| error.to_string())
            .trim_end()
            .to_owned()
    }
}

/// The result of `herald config check` for a valid configuration.
#[derive(Debug, Serialize)]
struct Valid {
    valid: bool,
}

impl Show for Valid {
    fn text(&self) -> String {
        "the configuration is valid".into()
    }
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let file = context.global.config.as_deref();
    match &args.action {
        Action::Print(settings) => {
            let config = Config::load(file, settings.flags(&context.global))
                .map_err(|error| Failure::usage(error.to_string()))?;
            context.output.show(&Effective(config))
        }
        Action::Check(settings) => {
            Config::load_for_start(file, settings.flags(&context.global))
                .await
                .map_err(Failure::usage)?;
            context.output.show(&Valid { valid: true })
        }
    }
}
