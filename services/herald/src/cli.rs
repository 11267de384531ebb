//! The command line: the global options and the tree of commands. Each command's own arguments stand in its file.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueHint};

use crate::{
    commands,
    failure::{Failure, Kind},
    output::Format,
    time,
};

/// Where a server listens when nothing else is said.
pub(crate) const DEFAULT_SERVER: &str = "http://127.0.0.1:7700";

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

/// Options that every command takes, before or after its name.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The Herald server to talk to
    ///
    /// Its gRPC address: http://HOST:PORT, or HOST:PORT. `herald up` prints it when it starts.
    #[arg(
        long,
        short = 's',
        global = true,
        env = "HERALD_SERVER",
        value_name = "URL",
        default_value = DEFAULT_SERVER,
        value_parser = server,
        value_hint = ValueHint::Url
    )]
    pub(crate) server: String,

    /// How to print answers and errors
    ///
    /// `text` is for people and may change; `json` is for programs: one object, or one a line for what streams. Times
    /// in it are RFC 3339, durations are numbers with their unit in the name.
    #[arg(
        long,
        short = 'o',
        global = true,
        env = "HERALD_OUTPUT",
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub(crate) output: Format,

    /// How long one answer of the server may take
    ///
    /// The server gets this as the call's deadline. Streams and imports have none.
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        default_value = "30s",
        value_parser = time::positive_duration
    )]
    pub(crate) rpc_timeout: Duration,

    /// The configuration file, TOML
    ///
    /// Read by what starts servers (`up`, `bench`) and by `config`. The layers are: defaults, this file, the
    /// environment (HERALD_…), the command line.
    #[arg(long, global = true, env = "HERALD_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,

    /// What to log to standard error
    ///
    /// A level (error, warn, info, debug, trace), or levels by module: `warn,herald_mesh=debug`.
    #[arg(long, global = true, env = "HERALD_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,

    /// Where to send traces, OTLP over gRPC
    ///
    /// One trace then spans this command and all that the servers do for it. Off by default.
    #[arg(
        long,
        global = true,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        value_name = "URL",
        value_hint = ValueHint::Url
    )]
    pub(crate) otlp: Option<String>,
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
    Bench(Box<commands::bench::Args>),
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
        failure.report(Format::Json);
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

/// `HOST:PORT` is allowed for `http://HOST:PORT`.
fn server(text: &str) -> Result<String, String> {
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    if url.starts_with("https://") {
        return Err("TLS is not there yet: give an http:// address".into());
    }
    let url = url.trim_end_matches('/').to_owned();
    let authority = url.strip_prefix("http://").unwrap_or_default();
    if authority.is_empty()
        || authority.contains(['/', '@', ' '])
        || url.parse::<tonic::transport::Uri>().is_err()
    {
        return Err("not an address such as http://127.0.0.1:7700 or localhost:7700".into());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn servers_are_addresses() {
        assert_eq!(server("localhost:7700").unwrap(), "http://localhost:7700");
        assert_eq!(server("http://10.0.0.1:1/").unwrap(), "http://10.0.0.1:1");
        assert_eq!(server("[::1]:7700").unwrap(), "http://[::1]:7700");
        for bad in [
            "",
            "https://a",
            "ftp://a",
            "http://",
            "a b",
            "http://a/b",
            "user@host:1",
        ] {
            assert!(server(bad).is_err(), "{bad}");
        }
    }
}
