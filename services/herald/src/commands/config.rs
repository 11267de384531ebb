//! `herald config`: prints or checks the configuration of a server.

use clap::Subcommand;
use herald_cli::{
    context::{Context, Global},
    failure::Failure,
    output::Show,
};
use herald_runtime::config::Flags;
use serde::{Serialize, Serializer, ser::Error as _};
use serde_json::Value;

use crate::{
    server::{Config, Role, Roles},
    settings::{ServeSettings, Settings},
};

const EXAMPLES: &str = "\
Examples:
  Write a file with all keys and their defaults:
    herald config print > herald.toml
  Print the effective configuration of a file and the environment:
    HERALD_FANOUT__SLICE_RECIPIENTS_MAX=32768 herald config print --config herald.toml
  Check a file, and the files and directories that it names, without starting a server:
    herald config check --config herald.toml
    herald config check --config herald.toml --roles timeline,push

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
    Print(Box<AllSettings>),
    /// Check the settings, and the files and directories that they name, as a start does
    ///
    /// Starts nothing. The error names the invalid key and its layer. It is not checked whether the ports are free, or
    /// whether another server has the data directory open, or whether NATS and the databases can be reached.
    #[command(after_long_help = EXAMPLES)]
    Check(Box<CheckArgs>),
}

/// All settings with a flag.
#[derive(Debug, clap::Args)]
struct AllSettings {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    serve: ServeSettings,
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    #[command(flatten)]
    all: AllSettings,

    /// Check the settings of `herald serve` with these roles, not of `herald up`
    #[arg(long, value_name = "ROLE", value_enum, value_delimiter = ',')]
    roles: Vec<Role>,
}

impl AllSettings {
    fn flags(&self, global: &Global) -> Result<Flags, Failure> {
        Ok(self.serve.add_to(self.settings.flags(global)?))
    }
}

/// The effective configuration. JSON hides the same as TOML: secrets, and the credentials in any URL.
#[derive(Debug)]
struct Effective(Config);

impl Serialize for Effective {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut value = serde_json::to_value(&self.0).map_err(S::Error::custom)?;
        hide_passwords(&mut value);
        value.serialize(serializer)
    }
}

fn hide_passwords(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(hidden) = herald_runtime::config::hide_password(text) {
                *text = hidden;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(hide_passwords),
        Value::Object(values) => values.values_mut().for_each(hide_passwords),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

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
            let config = Config::load(file, settings.flags(&context.global)?)
                .map_err(|error| Failure::usage(error.to_string()))?;
            context.output.show(&Effective(config))
        }
        Action::Check(check) => {
            let (roles, shared) = if check.roles.is_empty() {
                (Roles::whole(), false)
            } else {
                (check.roles.iter().copied().collect(), true)
            };
            let flags = check.all.flags(&context.global)?;
            let config = Config::load_for_start(file, flags, &roles, shared)
                .await
                .map_err(Failure::usage)?;
            for advice in config.advice(file) {
                context.output.note(&advice);
            }
            context.output.show(&Valid { valid: true })
        }
    }
}
