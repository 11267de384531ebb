//! The context of a command: the global options, the output, and the connection to the server.

use std::{path::PathBuf, time::Duration};

use clap::ValueHint;
use herald_runtime::{config::SecretUrl, telemetry};

use crate::{
    client::Client,
    failure::Failure,
    output::{Format, Output},
    time,
};

/// Default of `--server`.
const DEFAULT_SERVER: &str = "http://127.0.0.1:7700";

/// Options of every command, before or after its name.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The gRPC address of the Herald server
    ///
    /// http://HOST:PORT or HOST:PORT. `herald up` prints its address when it is ready.
    #[arg(
        long,
        short = 's',
        global = true,
        env = "HERALD_SERVER",
        value_name = "URL",
        default_value = DEFAULT_SERVER,
        value_parser = parse_server,
        value_hint = ValueHint::Url
    )]
    pub server: String,

    /// The format of results and errors
    ///
    /// `text` is for people; its layout may change. `json` is for programs: one JSON object, or one object per line for
    /// commands that stream. Times are RFC 3339 in UTC; the name of a duration's key ends in its unit.
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

    /// The deadline of each call to the server, more than 0
    ///
    /// For example 500ms, 30s or 1h30m. Streaming calls and imports have no deadline.
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        default_value = "30s",
        value_parser = time::positive_duration
    )]
    pub rpc_timeout: Duration,

    /// The configuration file of a server, TOML
    ///
    /// The commands that start, prepare or move a server read it: `up`, `serve`, `bench`, `config`, `store`, `topology`,
    /// `migrate`. Later layers override earlier ones: defaults, this file, environment variables (HERALD_…), flags.
    #[arg(long, global = true, env = "HERALD_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// The log filter; logs go to standard error
    ///
    /// A level (error, warn, info, debug, trace), or levels per module: `warn,herald_mesh=debug`. Client commands log
    /// warnings and errors by default.
    #[arg(long, global = true, env = "HERALD_LOG", value_name = "FILTER")]
    pub log: Option<String>,

    /// The OTLP endpoint (gRPC) that receives traces
    ///
    /// A trace contains this command and the work of the servers for it. Without an endpoint no traces are sent.
    #[arg(
        long,
        global = true,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        value_name = "URL",
        value_hint = ValueHint::Url
    )]
    pub otlp: Option<String>,
}

/// The global options and the output of a command.
#[derive(Debug)]
pub struct Context {
    /// The global options as parsed.
    pub global: Global,
    /// Prints results and notes.
    pub output: Output,
}

impl Context {
    /// Creates the context. JSON output turns colours off.
    pub fn new(global: Global) -> Self {
        let output = Output::new(global.output);
        if global.output == Format::Json {
            console::set_colors_enabled(false);
        }
        Self { global, output }
    }

    /// Starts logs and traces of a client command. The default log level is `warn`.
    pub fn client_telemetry(&self) -> Result<telemetry::Guard, Failure> {
        let config = telemetry::Config {
            log: self.global.log.clone(),
            log_filter: "warn".into(),
            otlp: self.global.otlp.as_deref().map(SecretUrl::from),
            ..telemetry::Config::default()
        };
        telemetry::init(&config).map_err(|error| match error {
            telemetry::Error::Filter { .. } => Failure::usage(error.to_string()),
            _ => Failure::from(anyhow::Error::new(error)),
        })
    }

    /// Connects to the server of `--server`.
    pub async fn client(&self) -> Result<Client, Failure> {
        Client::connect(&self.global.server, self.global.rpc_timeout).await
    }
}

/// Parses the value of `--server`; `HOST:PORT` becomes `http://HOST:PORT`.
fn parse_server(text: &str) -> Result<String, String> {
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    if url.starts_with("https://") {
        return Err("TLS is not supported: use an http:// address".into());
    }
    let url = url.trim_end_matches('/').to_owned();
    let authority = url.strip_prefix("http://").unwrap_or_default();
    if authority.is_empty()
        || authority.contains(['/', '@', ' '])
        || url.parse::<tonic::transport::Uri>().is_err()
    {
        return Err("not an address; use http://HOST:PORT or HOST:PORT, such as localhost:7700".into());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_addresses_are_parsed() {
        assert_eq!(parse_server("localhost:7700").unwrap(), "http://localhost:7700");
        assert_eq!(parse_server("http://10.0.0.1:1/").unwrap(), "http://10.0.0.1:1");
        assert_eq!(parse_server("[::1]:7700").unwrap(), "http://[::1]:7700");
        for bad in [
            "",
            "https://a",
            "ftp://a",
            "http://",
            "a b",
            "http://a/b",
            "user@host:1",
        ] {
            assert!(parse_server(bad).is_err(), "{bad}");
        }
    }
}
