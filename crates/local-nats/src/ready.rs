//! Readiness: the server has written its ports file, accepts clients, and its JetStream has recovered.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use herald_local_process::{Log, Process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::config::Ports;
use crate::error::{Error, Result};

const POLL_INTERVAL: Duration = Duration::from_millis(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum size of a reply of the server, bytes. INFO takes some hundred bytes, the health check a line.
const REPLY_BYTES_MAX: u64 = 64 << 10;

/// Ports and version of a ready server.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    pub(crate) ports: Ports,
    pub(crate) version: String,
}

/// Waits until the server is ready. Fails if the server exits, or after `limit`.
pub(crate) async fn wait(process: &Process, ports_dir: &Path, log: &Log, limit: Duration) -> Result<Ready> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = process
            .status()
            .map_err(Error::io("read the status of nats-server"))?
        {
            return Err(start_error(status, log.tail()));
        }
        let missing = match probe(process.pid(), ports_dir).await {
            Ok(ready) => return Ok(ready),
            Err(missing) => missing,
        };
        if Instant::now() >= deadline {
            return Err(Error::NotReady {
                limit,
                missing,
                log: log.tail(),
            });
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn start_error(status: std::process::ExitStatus, log: String) -> Error {
    // Only the log shows that a port is in use. If the server's message changes, the error is the general one.
    match port_in_use(&log) {
        Some(port) => Error::PortTaken { port },
        None => Error::Exited { status, log },
    }
}

/// The port in a log line like `listen tcp 127.0.0.1:4222: bind: address already in use`.
fn port_in_use(log: &str) -> Option<u16> {
    log.lines().rev().find_map(|line| {
        let (listen, _) = line.split_once(": bind: address already in use")?;
        listen.rsplit_once(':')?.1.parse().ok()
    })
}

/// Checks the readiness once. The error is the failed check.
async fn probe(pid: u32, ports_dir: &Path) -> Result<Ready, String> {
    let ports = read_ports(pid, ports_dir).map_err(|error| format!("no ports file ({error})"))?;
    let info = with_timeout(read_info(ports.client))
        .await
        .map_err(|error| format!("no INFO message ({error})"))?;
    if !info.jetstream {
        return Err("JetStream is not enabled".into());
    }
    with_timeout(check_health(ports.monitor))
        .await
        .map_err(|error| format!("not healthy ({error})"))?;
    Ok(Ready {
        ports,
        version: info.version,
    })
}

async fn with_timeout<T>(probe: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PROBE_TIMEOUT, probe)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The ports file of nats-server, named after its executable and pid.
#[derive(Deserialize)]
struct PortsFile {
    nats: Vec<String>,
    monitoring: Vec<String>,
}

pub(crate) fn read_ports(pid: u32, dir: &Path) -> io::Result<Ports> {
    let suffix = format!("_{pid}.ports");
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(&suffix) {
            // A partly written file is not valid JSON; the next check reads it again.
            let file: PortsFile = serde_json::from_slice(&std::fs::read(entry.path())?)?;
            return match (port(&file.nats), port(&file.monitoring)) {
                (Some(client), Some(monitor)) => Ok(Ports { client, monitor }),
                _ => Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The port of the first URL.
fn port(urls: &[String]) -> Option<u16> {
    urls.first()?.rsplit_once(':')?.1.parse().ok()
}

/// The INFO message that nats-server sends to each new client.
#[derive(Deserialize)]
struct Info {
    version: String,
    #[serde(default)]
    jetstream: bool,
}

async fn connect(port: u16) -> io::Result<TcpStream> {
    TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

async fn read_info(port: u16) -> io::Result<Info> {
    let mut line = String::new();
    BufReader::new(connect(port).await?)
        .take(REPLY_BYTES_MAX)
        .read_line(&mut line)
        .await?;
    let json = line.strip_prefix("INFO ").ok_or(io::ErrorKind::InvalidData)?;
    Ok(serde_json::from_str(json)?)
}

async fn check_health(port: u16) -> io::Result<()> {
    let mut stream = connect(port).await?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await?;
    let mut reply = Vec::new();
    stream.take(REPLY_BYTES_MAX).read_to_end(&mut reply).await?;
    let reply = String::from_utf8_lossy(&reply);
    match reply.split_whitespace().nth(1) {
        Some("200") => Ok(()),
        _ => Err(io::Error::other(
            reply.lines().last().unwrap_or("empty reply").to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_in_use_is_read_from_the_log() {
        let log = "[7] [INF] Starting nats-server\n[7] [FTL] Error listening on port: \"127.0.0.1:4222\", \"listen tcp \
                   127.0.0.1:4222: bind: address already in use\"\n[7] [INF] Server Exiting..";
        assert_eq!(port_in_use(log), Some(4_222));
        assert_eq!(port_in_use("[7] [FTL] Can't start JetStream"), None);
    }
}
