//! What every command is given: the global options, and the ways to print and to reach the server.

use std::{path::PathBuf, time::Duration};

use clap::ValueHint;
use herald_runtime::telemetry;

use crate::{
    client::Client,
    failure::Failure,
    output::{Format, Output},
    time,
};

/// Where a server listens when nothing else is said.
const DEFAULT_SERVER: &str = "http://127.0.0.1:7700";

/// Options that every command takes, before or after its name.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
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
    pub server: String,

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
    pub output: Format,

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
    pub rpc_timeout: Duration,

    /// The configuration file, TOML
    ///
    /// Read by what starts servers (`up`, `bench`) and by `config`. The layers are: defaults, this file, the
    /// environment (HERALD_…), the command line.
    #[arg(long, global = true, env = "HERALD_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// What to log to standard error
    ///
    /// A level (error, warn, info, debug, trace), or levels by module: `warn,herald_mesh=debug`.
    #[arg(long, global = true, env = "HERALD_LOG", value_name = "FILTER")]
    pub log: Option<String>,

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
    pub otlp: Option<String>,
}

/// The global options, ready for use.
#[derive(Debug)]
pub struct Context {
    /// As they were given.
    pub global: Global,
    /// Where answers and notes go.
    pub output: Output,
}

impl Context {
    /// With the global options of the command line.
    pub fn new(global: Global) -> Self {
        let output = Output::new(global.output);
        if global.output == Format::Json {
            console::set_colors_enabled(false);
        }
        Self { global, output }
    }

    /// Starts the logs and traces of a command that is a client: quiet, unless asked.
    pub fn client_telemetry(&self) -> Result<telemetry::Guard, Failure> {
        let config = telemetry::Config {
            log: self.global.log.clone(),
            log_filter: "warn".into(),
            otlp: self.global.otlp.clone(),
            ..telemetry::Config::default()
        };
        telemetry::init(&config).map_err(|error| match error {
            telemetry::Error::Filter { .. } => Failure::usage(error.to_string()),
            _ => Failure::from(anyhow::Error::new(error)),
        })
    }

    /// Connects to the server.
    pub async fn client(&self) -> Result<Client, Failure> {
        Client::connect(&self.global.server, self.global.rpc_timeout).await
    }
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
    use super::*;

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
