//! The command line: the tree of commands and their dispatch. The file of each command defines its arguments.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches as _, Parser, Subcommand, error::ErrorKind, parser::ValueSource};
use herald_cli::{
    context::{Context, Global},
    failure::{Failure, Kind},
    output::{Format, Output},
};
use herald_runtime::config::SecretUrl;

use crate::{commands, parse_error};

const ABOUT: &str = "\
Herald delivers posts to followers: each post appears on the timeline of every follower, and every follower who \
enabled notifications for the author gets a push.

This program is the server (`herald up`, or `herald serve` on many machines) and the client. Client commands call the server at --server or HERALD_SERVER \
over gRPC.";

const AFTER: &str = "\
Exit codes:
  0  success; also when Ctrl-C ended a stream, or the reader of standard output
     closed it
  1  the server rejected the request, the command failed, or an audit, import or
     redrive had failures
  2  the command line is invalid, or the server rejected a value as invalid
  3  the server can't be reached or is unavailable
  4  the post, device, user or dead letter doesn't exist
  5  the deadline or timeout passed
  6  the server is overloaded; retry later
  130  Ctrl-C stopped an import, an erasure of a user or a move of data

With --output json, an error is one JSON object on standard error, without the keys that
don't apply:
  {\"error\":{\"kind\":…,\"exit_code\":…,\"message\":…,\"code\":…,\"reason\":…,\"fields\":[…],\"retry_after_seconds\":…,\"hint\":…}}

Examples:
  Follow an author, submit a post as that author, and read it on the follower's timeline:
    herald follow 1 107 --notify
    herald post --author 107 --text 'hello, followers'
    herald timeline 1

  Import a graph, then check that a post reached all followers:
    herald import follows edges.txt --mutual
    herald delivery 1 --wait

  Show the help of a command:
    herald help COMMAND";

/// The arguments of the program.
#[derive(Debug, Parser)]
#[command(
    name = "herald",
    version,
    about = "Delivers posts to followers: a notification fan-out mesh, server and client",
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

/// The command to run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Up(Box<commands::up::Args>),
    Serve(Box<commands::serve::Args>),
    Post(commands::post::Args),
    Posts(commands::posts::Args),
    Delete(commands::delete::Args),
    Follow(commands::follow::Args),
    Unfollow(commands::unfollow::Args),
    Following(commands::following::Args),
    Import(commands::import::Args),
    Device(commands::device::Args),
    Prefs(commands::prefs::Args),
    Timeline(commands::timeline::Args),
    Watch(commands::watch::Args),
    Delivery(commands::delivery::Args),
    Why(commands::why::Args),
    Stats(commands::stats::Args),
    Dlq(commands::dlq::Args),
    Audit(commands::audit::Args),
    Rebuild(commands::rebuild::Args),
    Key(commands::key::Args),
    User(commands::user::Args),
    Lag(commands::lag::Args),
    Top(commands::top::Args),
    Doctor(commands::doctor::Args),
    PushSink(commands::push_sink::Args),
    RoundTrip(commands::round_trip::Args),
    Bench(Box<herald_bench::Args>),
    Config(commands::config::Args),
    Topology(commands::topology::Args),
    Store(commands::store::Args),
    Secrets(commands::secrets::Args),
    Migrate(commands::migrate::Args),
    Backup(commands::backup::Args),
    Restore(commands::restore::Args),
    Recover(commands::recover::Args),
    Completions(commands::completions::Args),
    Man(commands::man::Args),
}

impl Cli {
    /// Parses the command line.
    ///
    /// # Errors
    /// It is invalid, or `--otlp` has a password there, which other users of the machine could read. The other URLs are
    /// checked by their commands.
    pub(crate) fn parse_from_words<W: Into<OsString> + Clone>(
        words: impl IntoIterator<Item = W>,
    ) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(words)?;
        let cli = Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        let is_given = matches.value_source("otlp") == Some(ValueSource::CommandLine);
        let has_password = |url: &String| SecretUrl::new(url).has_password();
        if is_given && cli.global.otlp.as_ref().is_some_and(has_password) {
            return Err(command.error(
                ErrorKind::ValueValidation,
                "--otlp must not have a password, because other users of this machine can read the command line: set \
                 OTEL_EXPORTER_OTLP_ENDPOINT, or for a server HERALD_TELEMETRY__OTLP",
            ));
        }
        Ok(cli)
    }
}

impl Command {
    /// The name of the command's root span.
    pub(crate) const fn trace_name(&self) -> &'static str {
        match self {
            Self::Up(_) => "herald up",
            Self::Serve(_) => "herald serve",
            Self::Topology(_) => "herald topology",
            Self::Store(_) => "herald store",
            Self::Secrets(_) => "herald secrets",
            Self::Migrate(_) => "herald migrate",
            Self::Backup(_) => "herald backup",
            Self::Restore(_) => "herald restore",
            Self::Recover(_) => "herald recover",
            Self::Bench(_) => "herald bench",
            Self::Config(_) => "herald config",
            Self::Post(_) => "herald post",
            Self::Posts(_) => "herald posts",
            Self::Delete(_) => "herald delete",
            Self::Follow(_) => "herald follow",
            Self::Unfollow(_) => "herald unfollow",
            Self::Following(_) => "herald following",
            Self::Import(_) => "herald import",
            Self::Device(_) => "herald device",
            Self::Prefs(_) => "herald prefs",
            Self::Timeline(_) => "herald timeline",
            Self::Watch(_) => "herald watch",
            Self::Delivery(_) => "herald delivery",
            Self::Why(_) => "herald why",
            Self::Stats(_) => "herald stats",
            Self::Dlq(_) => "herald dlq",
            Self::Audit(_) => "herald audit",
            Self::Rebuild(_) => "herald rebuild",
            Self::Key(_) => "herald key",
            Self::User(_) => "herald user",
            Self::Lag(_) => "herald lag",
            Self::Top(_) => "herald top",
            Self::Doctor(_) => "herald doctor",
            Self::PushSink(_) => "herald push-sink",
            Self::RoundTrip(_) => "herald round-trip",
            Self::Completions(_) => "herald completions",
            Self::Man(_) => "herald man",
        }
    }

    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Post(args) => commands::post::run(args, context).await,
            Self::Posts(args) => commands::posts::run(args, context).await,
            Self::Delete(args) => commands::delete::run(args, context).await,
            Self::Follow(args) => commands::follow::run(args, context).await,
            Self::Unfollow(args) => commands::unfollow::run(args, context).await,
            Self::Following(args) => commands::following::run(args, context).await,
            Self::Import(args) => commands::import::run(args, context).await,
            Self::Device(args) => commands::device::run(args, context).await,
            Self::Prefs(args) => commands::prefs::run(args, context).await,
            Self::Timeline(args) => commands::timeline::run(args, context).await,
            Self::Watch(args) => commands::watch::run(args, context).await,
            Self::Delivery(args) => commands::delivery::run(args, context).await,
            Self::Why(args) => commands::why::run(args, context).await,
            Self::Stats(args) => commands::stats::run(args, context).await,
            Self::Dlq(args) => Box::pin(commands::dlq::run(args, context)).await,
            Self::Audit(args) => commands::audit::run(args, context).await,
            Self::Rebuild(args) => commands::rebuild::run(args, context).await,
            Self::Key(args) => Box::pin(commands::key::run(args, context)).await,
            Self::User(args) => Box::pin(commands::user::run(args, context)).await,
            Self::Lag(args) => commands::lag::run(args, context).await,
            Self::Top(args) => Box::pin(commands::top::run(args, context)).await,
            Self::Doctor(args) => Box::pin(commands::doctor::run(&args, context)).await,
            Self::PushSink(args) => commands::push_sink::run(args, context).await,
            Self::RoundTrip(args) => Box::pin(commands::round_trip::run(args, context)).await,
            Self::Bench(args) => Box::pin(herald_bench::run(*args, context)).await,
            Self::Config(args) => Box::pin(commands::config::run(&args, context)).await,
            Self::Up(args) => Box::pin(commands::up::run(*args, context)).await,
            Self::Serve(args) => Box::pin(commands::serve::run(*args, context)).await,
            Self::Topology(args) => Box::pin(commands::topology::run(&args, context)).await,
            Self::Store(args) => Box::pin(commands::store::run(&args, context)).await,
            Self::Secrets(args) => Box::pin(commands::secrets::run(&args, context)).await,
            Self::Migrate(args) => Box::pin(commands::migrate::run(&args, context)).await,
            Self::Backup(args) => Box::pin(commands::backup::run(&args, context)).await,
            Self::Restore(args) => Box::pin(commands::restore::run(&args, context)).await,
            Self::Recover(args) => Box::pin(commands::recover::run(&args, context)).await,
            Self::Completions(args) => commands::completions::run(&args, Cli::command()),
            Self::Man(args) => commands::man::run(&args, Cli::command(), context),
        }
    }
}

/// Prints clap's help to standard output, or its error to standard error in the requested format.
pub(crate) fn report_parse_error(error: &clap::Error) -> ExitCode {
    let wants_json = || {
        let mut words =
            std::env::args().skip_while(|word| !word.starts_with("-o") && !word.starts_with("--output"));
        let requested = words
            .next()
            .map(|word| word.ends_with("json") || words.next().is_some_and(|next| next == "json"));
        requested.unwrap_or_else(|| std::env::var("HERALD_OUTPUT").is_ok_and(|format| format == "json"))
    };
    if error.use_stderr() && wants_json() {
        let text = parse_error::text(error, false);
        let message = text
            .trim_start_matches("error: ")
            .split("\n\n")
            .next()
            .unwrap_or_default();
        let failure = Failure::usage(message.split_whitespace().collect::<Vec<_>>().join(" "));
        Output::new(Format::Json).report(&failure);
        return failure.exit_code();
    }
    // A closed output leaves nowhere to report to.
    let _ = if error.use_stderr() {
        let ansi = console::colors_enabled_stderr();
        io::stderr().write_all(parse_error::text(error, ansi).as_bytes())
    } else {
        error.print()
    };
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
    fn the_command_definitions_are_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_password_in_otlp_on_the_command_line_is_refused() {
        let parse = |words: &[&str]| Cli::parse_from_words(["herald"].iter().chain(words).copied());
        let url = "http://me:hunter2@127.0.0.1:4317";
        for words in [["--otlp", url, "lag"], ["lag", "--otlp", url]] {
            let Err(error) = parse(&words) else {
                panic!("{words:?} is accepted")
            };
            let text = parse_error::text(&error, false);
            assert!(
                text.starts_with("error: --otlp must not have a password"),
                "{text}"
            );
            assert!(!text.contains("hunter2"), "{text}");
        }
        let cli = parse(&["lag", "--otlp", "http://127.0.0.1:4317"]).ok();
        assert_eq!(
            cli.and_then(|cli| cli.global.otlp).as_deref(),
            Some("http://127.0.0.1:4317")
        );
    }
}
