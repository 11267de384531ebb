//! Calls the process of a data directory through its control socket.

use std::{io, path::Path, time::Duration};

use herald_proto::mesh_v1::control_service_client::ControlServiceClient;
use rustix::process::{Pid, test_kill_process};
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// Interval at which a process that answers nothing is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// Limit for its answer. Calls of a process that doesn't give it fail.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// A connection to the process of a data directory.
pub(crate) struct ControlClient {
    pub(crate) calls: ControlServiceClient<Channel>,
    /// The process id.
    pid: Option<i32>,
}

impl ControlClient {
    /// Connects; `None` if nobody listens on the socket. Calls fail after 8 s if the process takes none, such as one
    /// that was stopped by SIGSTOP.
    ///
    /// # Errors
    /// The socket may not be used, or its path can't be.
    pub(crate) async fn connect(socket: &Path) -> io::Result<Option<Self>> {
        let pid = match UnixStream::connect(socket).await {
            // Its credentials are those of the process that listens.
            Ok(stream) => stream.peer_cred().ok().and_then(|of| of.pid()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            // A process that was killed leaves its socket; the lock of the store tells whether one runs.
            Err(_) => return Ok(None),
        };
        // As it is: an absolute path can be too long where a relative one is not.
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()));
        let channel = endpoint
            .map_err(io::Error::other)?
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_LIMIT)
            .connect()
            .await
            .map_err(io::Error::other)?;
        Ok(Some(Self {
            calls: ControlServiceClient::new(channel),
            pid,
        }))
    }

    /// How the process is called.
    pub(crate) fn name(&self) -> String {
        process_name(self.pid)
    }

    /// Whether a call failed because the process runs and gives no answer.
    pub(crate) fn is_silent(&self, status: &Status) -> bool {
        // An error of the connection has a source, the answer of a server has none.
        let is_broken = std::error::Error::source(status).is_some();
        is_broken && self.pid.and_then(Pid::from_raw).is_some_and(is_running)
    }
}

/// How the process of a data directory is called.
pub(crate) fn process_name(pid: Option<i32>) -> String {
    match pid {
        Some(pid) => format!("herald up (pid {pid})"),
        None => "herald up".into(),
    }
}

fn is_running(pid: Pid) -> bool {
    !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}
