//! `herald config`: what a server would be set to.

use clap::Subcommand;
use herald_cli::{context::Context, failure::Failure, output::Show};
use serde::Serialize;

use crate::{server::Config, settings::Settings};

const EXAMPLES: &str = "\
Examples:
  A file to start from:
    herald config print > herald.toml
  What a server would run with, from a file and the environment:
    HERALD_FANOUT__SLICE_RECIPIENTS_MAX=32768 herald config print --config herald.toml
  Whether a file is right, without starting anything:
    herald config check --config herald.toml

Layers, the later ones win:
  defaults; the file of --config; HERALD_… variables, with __ between a part and its key; flags.";

/// Prints or checks the configuration a server would run with
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print all of it as TOML (as JSON with --output json), secrets hidden
    #[command(after_long_help = EXAMPLES)]
    Print(Box<Settings>),
    /// Say whether it is right, and if not, which key of which layer is wrong
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

/// Nothing is wrong.
#[derive(Debug, Serialize)]
struct Valid {
    valid: bool,
}

impl Show for Valid {
    fn text(&self) -> String {
        "the configuration is valid".into()
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let (Action::Print(settings) | Action::Check(settings)) = &args.action;
    let config = Config::load(context.global.config.as_deref(), settings.flags(&context.global))
        .map_err(|error| Failure::usage(error.to_string()))?;
    match args.action {
        Action::Print(_) => context.output.show(&Effective(config)),
        Action::Check(_) => context.output.show(&Valid { valid: true }),
    }
}
