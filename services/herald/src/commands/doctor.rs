//! `herald doctor`: looks for known traps in a running mesh.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use console::style;
use herald_cli::{
    context::Context,
    failure::{Failure, Kind},
    output::{Show, counted},
};
use herald_runtime::telemetry::error_chain;
use serde::Serialize;

use super::installation::Installation;
use crate::{
    doctor::{self, Finding, Severity, Target, Unchecked},
    server::{Config, Examining, ProcessFile, process_name},
    sources::Source,
};

const LONG: &str = "\
Looks for known traps in a running mesh and its configuration, and changes nothing: streams and consumers that are missing, \
late, frozen, paused, or differ from the configuration; processes, servers and stores that can't be reached or are not ready; \
deliveries that are later than promised; retention that is shorter than the retries, back-offs, dedupe windows and \
limits of messages in flight that don't fit; consumers that nobody reads; streams that lost messages, or don't fit the \
store; replicas, fsync and clocks; processes whose settings differ. Each finding says why it matters and what to do. What \
could not be looked at is listed with the reason, never left out.

Run it with the configuration of the processes: on the machine of `herald up` with its data directory, or beside a process \
of `herald serve` with its environment, such as `kubectl exec deploy/herald-gateway -- herald doctor`. On a NATS server \
that restricts its users, use the credentials of the role gateway, which reads all streams.

No reading takes longer than some seconds: what doesn't answer is a finding.

The exit code is 1 if there is an error or a warning. Notes don't count, nor does what could not be looked at.";

const EXAMPLES: &str = "\
Examples:
  Of `herald up`:
    herald doctor --data-dir herald-data
  Of `herald serve`, with all its processes and all NATS servers:
    herald doctor --nats-url nats://nats:4222 --store postgres://postgres/herald \\
        --metrics http://herald-processes:7701 --monitor http://nats-headless:8222
  The ids of what is wrong:
    herald doctor --output json | jq -r '.findings[] | select(.severity != \"note\") | .id'";

/// Look for known traps in a running mesh
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    installation: Installation,

    /// The HTTP port of the processes (`http` in the configuration), http://HOST:PORT; repeat it for each
    ///
    /// A name stands for all its addresses, such as the pods of a headless Service. [default of `herald up`: its own]
    #[arg(long, value_name = "URL")]
    metrics: Vec<Source>,

    /// The monitoring port of the NATS servers, http://HOST:PORT, usually 8222; repeat it for each
    ///
    /// A name stands for all its addresses. [default of `herald up`: that of its nats-server]
    #[arg(long, value_name = "URL")]
    monitor: Vec<Source>,
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    findings: Vec<Finding>,
    not_checked: Vec<Unchecked>,
}

impl Report {
    fn count(&self, severity: Severity) -> u64 {
        let all = self.findings.iter();
        all.filter(|finding| finding.severity == severity).count() as u64
    }

    /// Errors and warnings.
    fn summary(&self) -> String {
        format!(
            "{} and {}",
            counted(self.count(Severity::Error), "error", "errors"),
            counted(self.count(Severity::Warning), "warning", "warnings")
        )
    }

    fn is_healthy(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.severity == Severity::Note)
    }
}

impl Show for Report {
    fn text(&self) -> String {
        let mut text = String::new();
        for Finding {
            id,
            severity,
            what,
            why,
            remedy,
        } in &self.findings
        {
            let severity = match severity {
                Severity::Error => style(severity.to_string()).red().bold(),
                Severity::Warning => style(severity.to_string()).yellow().bold(),
                Severity::Note => style(severity.to_string()).dim(),
            };
            let _ = write!(
                text,
                "{severity} {id}: {what}\n  why: {why}\n  remedy: {remedy}\n\n"
            );
        }
        for Unchecked { ids, reason } in &self.not_checked {
            let _ = writeln!(text, "not checked ({}): {reason}", ids.join(", "));
        }
        if self.is_healthy() {
            text += "nothing is wrong";
        } else {
            text += &self.summary();
        }
        text
    }
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let config = args.installation.config(context.global.config.as_deref())?;
    let examining = Examining::connect(&config)
        .await
        .map_err(|error| Failure::new(Kind::Unreachable, error_chain(error.as_ref())))?;
    let mut processes = args.metrics.clone();
    let mut own_process = None;
    if processes.is_empty()
        && let Some((name, source)) = process_of_data_dir(&config)
    {
        own_process = Some(name);
        processes.push(source);
    }
    let mut monitors = args.monitor.clone();
    if monitors.is_empty() {
        monitors.extend(examining.monitor_url.as_ref().and_then(|url| url.parse().ok()));
    }
    let observed = doctor::observe(&Target {
        config: &config,
        examining: &examining,
        processes: &processes,
        own_process,
        flags: &args.installation.mesh_flags(&config),
        monitors: &monitors,
    })
    .await;
    let report = Report {
        findings: doctor::examine(&observed),
        not_checked: observed.unchecked,
    };
    context.output.show(&report)?;
    if report.is_healthy() {
        Ok(())
    } else {
        Err(Failure::failed(report.summary()))
    }
}

/// The `herald up` of the data directory: how it is called, and its HTTP port.
fn process_of_data_dir(config: &Config) -> Option<(String, Source)> {
    if config.store.is_cluster() {
        return None;
    }
    let (name, address) = match ProcessFile::find(&config.data_dir) {
        Some(file) => (process_name(i32::try_from(file.pid).ok()), file.http),
        None if config.nats.is_child() => {
            let mut address: SocketAddr = config.http;
            if address.ip().is_unspecified() {
                address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
            }
            (process_name(None), address)
        }
        None => return None,
    };
    Some((name, format!("http://{address}").parse().ok()?))
}
