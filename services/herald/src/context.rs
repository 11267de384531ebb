//! What every command is given: the global options, and the ways to print and to reach the server.

use std::future::Future;

use herald_runtime::telemetry;

use crate::{
    cli::Global,
    client::Client,
    failure::Failure,
    output::{Format, Output},
};

/// The global options, ready for use.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) output: Output,
}

impl Context {
    pub(crate) fn new(global: Global) -> Self {
        let output = Output::new(global.output);
        if global.output == Format::Json {
            console::set_colors_enabled(false);
        }
        Self { global, output }
    }

    /// Starts the logs and traces of a command that is a client: quiet, unless asked.
    pub(crate) fn client_telemetry(&self) -> Result<telemetry::Guard, Failure> {
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
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        Client::connect(&self.global.server, self.global.rpc_timeout).await
    }
}

/// Runs a command on a runtime of its own.
pub(crate) fn run(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the async runtime can't start", &error))?;
    let outcome = runtime.block_on(command);
    // A thread that still waits for standard input must not hold the process.
    runtime.shutdown_background();
    outcome
}
