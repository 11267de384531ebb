//! The context of a command: the global options, the output, and the connection to the server.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use clap::ValueHint;
use herald_runtime::{config::SecretUrl, telemetry, tls::ClientFiles};

use crate::{
    caller::{Caller, CallerTls, Credential},
    client::{Client, OperatorClient},
    failure::Failure,
    output::{Format, Output},
    port::Port,
    time,
};

/// Default of `--server`.
const DEFAULT_SERVER: &str = "http://127.0.0.1:7700";
/// Default of `--operator-server`.
const DEFAULT_OPERATOR_SERVER: &str = "http://127.0.0.1:7702";

/// Options of every command, before or after its name.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The gRPC address of the Herald server
    ///
    /// http://HOST:PORT, https://HOST:PORT or HOST:PORT, which is http. `herald up` prints its address when it is ready.
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

    /// The operator port of the Herald server, for `dlq`, `audit`, `rebuild`, `key`, `user`, `lag`, `top` and `why`
    ///
    /// http://HOST:PORT, https://HOST:PORT or HOST:PORT, which is http. `herald up` prints its address when it is ready.
    #[arg(
        long,
        global = true,
        env = "HERALD_OPERATOR_SERVER",
        value_name = "URL",
        default_value = DEFAULT_OPERATOR_SERVER,
        value_parser = parse_server,
        value_hint = ValueHint::Url
    )]
    pub operator_server: String,

    /// A file with the API key or token to call the server with
    ///
    /// Without it the environment variable HERALD_TOKEN has the API key or token itself. There is no option for it,
    /// because other users of this machine can read command lines.
    #[arg(long, global = true, env = "HERALD_TOKEN_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,

    /// A PEM file with the authorities that an https:// server is verified with [default: those of the system]
    ///
    /// `herald up --tls` prints the file of its authority. Refused for a server that is called with http://.
    #[arg(long, global = true, env = "HERALD_CA_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ca_file: Option<PathBuf>,

    /// A PEM file with the certificate that this command shows an https:// server that requires one; refused for http://
    #[arg(
        long,
        global = true,
        env = "HERALD_CERT_FILE",
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        requires = "key_file"
    )]
    pub cert_file: Option<PathBuf>,

    /// A PEM file with the private key of --cert-file
    #[arg(
        long,
        global = true,
        env = "HERALD_KEY_FILE",
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        requires = "cert_file"
    )]
    pub key_file: Option<PathBuf>,

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
    /// The commands that start, prepare, copy or move a server read it: `up`, `serve`, `bench`, `config`, `store`,
    /// `topology`, `migrate`, `backup`, `restore`, `recover`. Later layers override earlier ones: defaults, this file, environment variables (HERALD_…), flags.
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
    called: Called,
}

/// Which ports the command has called.
#[derive(Debug, Default)]
struct Called {
    public: AtomicBool,
    operators: AtomicBool,
}

impl Context {
    /// Creates the context. JSON output turns colours off.
    pub fn new(global: Global) -> Self {
        let output = Output::new(global.output);
        if global.output == Format::Json {
            console::set_colors_enabled(false);
        }
        Self {
            global,
            output,
            called: Called::default(),
        }
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

    /// The deadline of `--rpc-timeout`, the credential of `--token-file` or `HERALD_TOKEN`, and the files of TLS.
    pub fn caller(&self) -> Result<Caller, Failure> {
        Ok(Caller {
            deadline: self.global.rpc_timeout,
            credential: Credential::find(self.global.token_file.as_deref())?,
            tls: CallerTls::Files(self.tls_files()),
        })
    }

    /// The files of TLS.
    pub fn tls_files(&self) -> ClientFiles {
        ClientFiles {
            authorities: self.global.ca_file.clone(),
            identity: self.global.cert_file.clone().zip(self.global.key_file.clone()),
        }
    }

    /// Connects to the server of `--server`.
    pub async fn client(&self) -> Result<Client, Failure> {
        self.called.public.store(true, Ordering::Relaxed);
        Client::connect(&self.global.server, self.caller()?).await
    }

    /// Connects to the operator port, that of `--operator-server`.
    pub async fn operator_client(&self) -> Result<OperatorClient, Failure> {
        self.called.operators.store(true, Ordering::Relaxed);
        OperatorClient::connect(&self.global.operator_server, self.caller()?).await
    }

    /// The ports that the command has called, and their addresses.
    pub fn called(&self) -> Vec<(Port, &str)> {
        [
            (&self.called.public, Port::Public, &self.global.server),
            (
                &self.called.operators,
                Port::Operators,
                &self.global.operator_server,
            ),
        ]
        .into_iter()
        .filter(|(called, ..)| called.load(Ordering::Relaxed))
        .map(|(_, port, server)| (port, server.as_str()))
        .collect()
    }
}

/// Parses the value of `--server`; `HOST:PORT` becomes `http://HOST:PORT`.
fn parse_server(text: &str) -> Result<String, String> {
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let url = url.trim_end_matches('/').to_owned();
    let authority = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    let authority = authority.unwrap_or_default();
    if authority.is_empty()
        || authority.contains(['/', '@', ' '])
        || url.parse::<tonic::transport::Uri>().is_err()
    {
        return Err(
            "not an address; use http://HOST:PORT, https://HOST:PORT or HOST:PORT, such as localhost:7700"
                .into(),
        );
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
        assert_eq!(parse_server("https://a:1").unwrap(), "https://a:1");
        assert_eq!(parse_server("[::1]:7700").unwrap(), "http://[::1]:7700");
        for bad in ["", "ftp://a", "http://", "a b", "http://a/b", "user@host:1"] {
            assert!(parse_server(bad).is_err(), "{bad}");
        }
    }
}
