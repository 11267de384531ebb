//! The command line: the tree of commands, and which file runs which. Each command's own arguments are in its file.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use herald_cli::{
    context::{Context, Global},
    failure::{Failure, Kind},
    output::{Format, Output},
};

use crate::commands;

const ABOUT: &str = "\
Herald tells followers: a post goes in, every follower's timeline shows it, and every follower who asked for it gets a \
push.

This one program is the server and its client. The client's commands talk gRPC to a server, which is found by --server \
or HERALD_SERVER.";

const AFTER: &str = "\
Exit codes:
  0  done; also when a stream was ended with Ctrl-C, or its reader went away
  1  the server refused, something failed, or part of an import was refused
  2  the command line is wrong, or the server calls a value invalid
  3  no server there, or it can't serve at the moment
  4  no such post, device, user or dead letter
  5  not done in the time given
  6  the server takes no more at the moment; try again later

With --output json an error is one JSON object on standard error:
  {\"error\":{\"kind\":…,\"exit_code\":…,\"message\":…,\"code\":…,\"reason\":…,\"fields\":[…],\"retry_after_seconds\":…,\"hint\":…}}

Examples:
  Follow an author, write a post as that author, and see it arrive:
    herald follow 1 107 --notify
    herald post --author 107 --text 'hello, followers'
    herald timeline 1

  Load a graph, then check that a post reached everyone:
    herald import follows edges.txt --mutual
    herald delivery 1 --wait

  Every command explains itself: herald help COMMAND";

/// Tells followers: the server and its client in one program.
#[derive(Debug, Parser)]
#[command(
    name = "herald",
    version,
    about = "Tells followers: a notification fan-out mesh, its server and its client",
    long_about = ABOUT,
    after_long_help = AFTER,
    arg_required_else_help = true,
    subcommand_required = true,
    disable_help_subcommand = false,
    propagate_version = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Up(Box<commands::up::Args>),
    Post(commands::post::Args),
    Delete(commands::delete::Args),
    Follow(commands::follow::Args),
    Unfollow(commands::unfollow::Args),
    Import(commands::import::Args),
    Device(commands::device::Args),
    Prefs(commands::prefs::Args),
    Timeline(commands::timeline::Args),
    Watch(commands::watch::Args),
    Delivery(commands::delivery::Args),
    Stats(commands::stats::Args),
    Dlq(commands::dlq::Args),
    Audit(commands::audit::Args),
    Lag(commands::lag::Args),
    PushSink(commands::push_sink::Args),
    Bench(Box<herald_bench::Args>),
    Config(commands::config::Args),
    Completions(commands::completions::Args),
    Man(commands::man::Args),
}

impl Command {
    /// How traces name it.
    pub(crate) const fn trace_name(&self) -> &'static str {
        match self {
            Self::Up(_) => "herald up",
            Self::Bench(_) => "herald bench",
            Self::Config(_) => "herald config",
            Self::Post(_) => "herald post",
            Self::Delete(_) => "herald delete",
            Self::Follow(_) => "herald follow",
            Self::Unfollow(_) => "herald unfollow",
            Self::Import(_) => "herald import",
            Self::Device(_) => "herald device",
            Self::Prefs(_) => "herald prefs",
            Self::Timeline(_) => "herald timeline",
            Self::Watch(_) => "herald watch",
            Self::Delivery(_) => "herald delivery",
            Self::Stats(_) => "herald stats",
            Self::Dlq(_) => "herald dlq",
            Self::Audit(_) => "herald audit",
            Self::Lag(_) => "herald lag",
            Self::PushSink(_) => "herald push-sink",
            Self::Completions(_) => "herald completions",
            Self::Man(_) => "herald man",
        }
    }

    /// Runs it.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Post(args) => commands::post::run(args, context).await,
            Self::Delete(args) => commands::delete::run(args, context).await,
            Self::Follow(args) => commands::follow::run(args, context).await,
            Self::Unfollow(args) => commands::unfollow::run(args, context).await,
            Self::Import(args) => commands::import::run(args, context).await,
            Self::Device(args) => commands::device::run(args, context).await,
            Self::Prefs(args) => commands::prefs::run(args, context).await,
            Self::Timeline(args) => commands::timeline::run(args, context).await,
            Self::Watch(args) => commands::watch::run(args, context).await,
            Self::Delivery(args) => commands::delivery::run(args, context).await,
            Self::Stats(args) => commands::stats::run(args, context).await,
            Self::Dlq(args) => Box::pin(commands::dlq::run(args, context)).await,
            Self::Audit(args) => commands::audit::run(args, context).await,
            Self::Lag(args) => commands::lag::run(args, context).await,
            Self::PushSink(args) => commands::push_sink::run(args, context).await,
            Self::Bench(args) => Box::pin(herald_bench::run(*args, context)).await,
            Self::Config(args) => commands::config::run(&args, context),
            Self::Up(args) => Box::pin(commands::up::run(*args, context)).await,
            Self::Completions(args) => commands::completions::run(&args, Cli::command()),
            Self::Man(args) => commands::man::run(&args, Cli::command(), context),
        }
    }
}

/// Reports what clap says about a command line: help as it is, an error in the format that was asked for.
pub(crate) fn report(error: &clap::Error) -> ExitCode {
    let wants_json = || {
        let mut words =
            std::env::args().skip_while(|word| !word.starts_with("-o") && !word.starts_with("--output"));
        let asked = words
            .next()
            .map(|word| word.ends_with("json") || words.next().is_some_and(|next| next == "json"));
        asked.unwrap_or_else(|| std::env::var("HERALD_OUTPUT").is_ok_and(|format| format == "json"))
    };
    if error.use_stderr() && wants_json() {
        let text = error.render().to_string();
        let message = text
            .trim_start_matches("error: ")
            .split("\n\n")
            .next()
            .unwrap_or_default();
        let failure = Failure::usage(message.split_whitespace().collect::<Vec<_>>().join(" "));
        Output::new(Format::Json).report(&failure);
        return failure.exit_code();
    }
    // Where there is nobody to print to, there is nothing to do about it.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() {
        Kind::Usage.exit_code()
    } else {
        0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }
}
