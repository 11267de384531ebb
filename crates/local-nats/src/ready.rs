//! When a server is ready: it has told its ports, greets clients, and its JetStream has recovered.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::config::Ports;
use crate::error::{Error, Result};
use crate::log::Log;
use crate::process::Process;

const TICK: Duration = Duration::from_millis(5);
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// A server's greeting is some hundred bytes, its health a line.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What a server says of itself once it is ready.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    pub(crate) ports: Ports,
    pub(crate) version: String,
}

/// Waits until the server is ready, has ended, or the limit is over.
pub(crate) async fn wait(process: &Process, ports_dir: &Path, log: &Log, limit: Duration) -> Result<Ready> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = process.status().map_err(Error::io("look at nats-server"))? {
            return Err(ended(status, log.tail()));
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
        sleep(TICK).await;
    }
}

fn ended(status: std::process::ExitStatus, log: String) -> Error {
    // The server's own words are the only way to tell; should they change, the error is the general one.
    if log.contains("address already in use") {
        Error::PortTaken { log }
    } else {
        Error::Exited { status, log }
    }
}

/// Looks once; the error says what is missing.
async fn probe(pid: u32, ports_dir: &Path) -> Result<Ready, String> {
    let ports = read_ports(pid, ports_dir).map_err(|error| format!("it has not told its ports ({error})"))?;
    let greeting = within(greeting(ports.client))
        .await
        .map_err(|error| format!("no greeting ({error})"))?;
    if !greeting.jetstream {
        return Err("JetStream is not enabled".into());
    }
    within(health(ports.monitor))
        .await
        .map_err(|error| format!("not healthy ({error})"))?;
    Ok(Ready {
        ports,
        version: greeting.version,
    })
}

async fn within<T>(probe: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PROBE_LIMIT, probe)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The file that nats-server writes its ports to, named after its executable and pid.
#[derive(Deserialize)]
struct PortsFile {
    nats: Vec<String>,
    monitoring: Vec<String>,
}

fn read_ports(pid: u32, dir: &Path) -> io::Result<Ports> {
    let suffix = format!("_{pid}.ports");
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(&suffix) {
            // Half-written, it is no JSON, and is read again at the next look.
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

#[derive(Deserialize)]
struct Greeting {
    version: String,
    #[serde(default)]
    jetstream: bool,
}

async fn connect(port: u16) -> io::Result<TcpStream> {
    TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

async fn greeting(port: u16) -> io::Result<Greeting> {
    let mut line = String::new();
    BufReader::new(connect(port).await?)
        .take(ANSWER_BYTES_MAX)
        .read_line(&mut line)
        .await?;
    let json = line.strip_prefix("INFO ").ok_or(io::ErrorKind::InvalidData)?;
    Ok(serde_json::from_str(json)?)
}

async fn health(port: u16) -> io::Result<()> {
    let mut stream = connect(port).await?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_whitespace().nth(1) {
        Some("200") => Ok(()),
        _ => Err(io::Error::other(
            answer.lines().last().unwrap_or("no answer").to_owned(),
        )),
    }
}
