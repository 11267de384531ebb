//! The start of a server: on a free port, until the server answers.

use std::time::Duration;

use herald_local_process::{Log, Process};
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Error, Result};
use crate::port;

/// Maximum number of starts of a server whose port another process takes.
const ATTEMPTS_MAX: u32 = 5;
/// Timeout of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a start may take.
pub(crate) struct Limits {
    /// Maximum time until the server answers.
    pub(crate) start: Duration,
    /// Interval between two probes.
    pub(crate) poll: Duration,
}

/// Starts a server. If its port was taken meanwhile, starts it again, with another port.
pub(crate) async fn start<T, F>(mut start_once: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut attempts = 1;
    loop {
        match start_once().await {
            Err(Error::Exited { log, .. }) if port::taken(&log) && attempts < ATTEMPTS_MAX => {
                attempts += 1;
            }
            started => return started,
        }
    }
}

/// Waits until `probe` succeeds. The error of the probe is the reason why the server is not ready.
pub(crate) async fn wait_ready<F>(
    program: &'static str,
    (process, log): (&Process, &Log),
    limits: &Limits,
    mut probe: impl FnMut() -> F,
) -> Result<()>
where
    F: Future<Output = std::result::Result<(), String>>,
{
    let deadline = Instant::now() + limits.start;
    loop {
        let status = process
            .status()
            .map_err(Error::io(format!("read the status of {program}")))?;
        if let Some(status) = status {
            return Err(Error::Exited {
                program,
                status,
                log: log.tail(),
            });
        }
        let reason = match timeout(PROBE_TIMEOUT, probe()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => reason,
            Err(_) => "no answer".into(),
        };
        if Instant::now() >= deadline {
            return Err(Error::NotReady {
                program,
                limit: limits.start,
                reason,
                log: log.tail(),
            });
        }
        sleep(limits.poll).await;
    }
}
