//! The HTTP ports of processes: a host name stands for all its addresses, such as the pods of a headless Service.

use std::{
    collections::BTreeMap,
    error::Error,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::{Duration, Instant},
};

use futures::future::join_all;
use herald_runtime::config::SecretUrl;
use reqwest::{Client, Url, redirect};

/// Limit for resolving a name, and for an answer.
const LIMIT: Duration = Duration::from_secs(3);
/// Longest answer, bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The base URL of one or more processes, `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source(Url);

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{:?} must be http://HOST:PORT", SecretUrl::new(text).redacted());
        let url: Url = text.parse().map_err(|_| expected())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "it must have no user and no password, because other users of this machine can read the command line"
                    .into(),
            );
        }
        let is_http = ["http", "https"].contains(&url.scheme());
        if !is_http
            || url.host_str().is_none_or(str::is_empty)
            || !matches!(url.path(), "" | "/" | "/metrics")
        {
            return Err(expected());
        }
        Ok(Self(url))
    }
}

/// An answer of one process, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The process: its URL, with its address.
    pub(crate) name: String,
    pub(crate) body: Result<String, String>,
    /// Whether nothing refused a connection and nothing answered.
    pub(crate) is_silent: bool,
    pub(crate) received_at: Instant,
}

/// Asks processes. Keeps its connections.
#[derive(Default)]
pub(crate) struct Asker {
    clients: BTreeMap<(String, SocketAddr), Client>,
}

impl Asker {
    /// Asks all processes of all sources for a path, at once. A name that can't be resolved gives one answer.
    /// `any_status`: whether the body counts whatever the status is.
    pub(crate) async fn ask(&mut self, sources: &[Source], path: &str, any_status: bool) -> Vec<Answer> {
        let found = join_all(
            sources
                .iter()
                .map(|source| async move { (source, resolve(&source.0).await) }),
        );
        let mut asked = Vec::new();
        let mut answers = Vec::new();
        for (source, addresses) in found.await {
            let host = source.0.host_str().unwrap_or_default().to_owned();
            match addresses {
                Ok(addresses) => {
                    for address in addresses {
                        let client = self
                            .clients
                            .entry((host.clone(), address))
                            .or_insert_with(|| client(&host, address));
                        asked.push((name(&source.0, address), source.0.clone(), client.clone()));
                    }
                }
                Err(reason) => answers.push(Answer {
                    name: source.0.origin().ascii_serialization(),
                    body: Err(reason),
                    is_silent: false,
                    received_at: Instant::now(),
                }),
            }
        }
        let asked = asked.into_iter().map(|(name, mut url, client)| async move {
            url.set_path(path.split('?').next().unwrap_or(path));
            url.set_query(path.split_once('?').map(|(_, query)| query));
            let body = get(&client, url, any_status).await;
            Answer {
                name,
                is_silent: matches!(body, Err(Failed::Silent)),
                body: body.map_err(|failed| match failed {
                    Failed::Silent => format!("no answer within {} s", LIMIT.as_secs()),
                    Failed::Other(reason) => reason,
                }),
                received_at: Instant::now(),
            }
        });
        answers.extend(join_all(asked).await);
        answers.sort_by(|a, b| a.name.cmp(&b.name));
        answers
    }
}

/// How a process is called: by its address if the URL has a name for several.
fn name(url: &Url, address: SocketAddr) -> String {
    format!("{}://{address}", url.scheme())
}

async fn resolve(url: &Url) -> Result<Vec<SocketAddr>, String> {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(80);
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = literal.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let looked_up = tokio::time::timeout(LIMIT, tokio::net::lookup_host((host, port))).await;
    let mut addresses: Vec<SocketAddr> = match looked_up {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(format!("{host} can't be resolved: {error}")),
        Err(_) => return Err(format!("{host} isn't resolved within {} s", LIMIT.as_secs())),
    };
    // localhost has two addresses for the same process.
    let is_local = addresses.iter().all(|address| address.ip().is_loopback());
    if is_local && addresses.iter().any(SocketAddr::is_ipv4) {
        addresses.retain(SocketAddr::is_ipv4);
    }
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

fn client(host: &str, address: SocketAddr) -> Client {
    // Fails if another part of the program has installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .timeout(LIMIT)
        .resolve(host, address)
        .build()
        .unwrap_or_default()
}

/// Why there is no answer.
enum Failed {
    /// Nothing was answered in time.
    Silent,
    /// Another reason.
    Other(String),
}

impl From<reqwest::Error> for Failed {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::Silent;
        }
        Self::Other(cause(&error))
    }
}

async fn get(client: &Client, url: Url, any_status: bool) -> Result<String, Failed> {
    let other = |reason: &str| Err(Failed::Other(reason.into()));
    let mut answer = client.get(url).send().await?;
    let status = answer.status();
    if !any_status && !status.is_success() {
        return other(&format!("the answer is {status}"));
    }
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await? {
        if body.len() + part.len() > ANSWER_BYTES_MAX {
            return other("the answer is too long");
        }
        body.extend_from_slice(&part);
    }
    String::from_utf8(body).or_else(|_| other("the answer is not UTF-8"))
}

/// The innermost cause, such as `Connection refused`: what is around it only names the URL again.
fn cause(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_base_url() {
        for good in [
            "http://localhost:7701",
            "http://10.0.0.1:7701/metrics",
            "http://[::1]:80/",
        ] {
            assert!(good.parse::<Source>().is_ok(), "{good}");
        }
        for bad in ["localhost:7701", "nats://a:1", "http://a:1/other", ""] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_process_that_is_away_has_a_reason() {
        let sources = [
            // Nobody listens there.
            "http://localhost:1".parse().unwrap(),
            "http://no-such-host.invalid:1".parse().unwrap(),
        ];
        let answers = Asker::default().ask(&sources, "/about", false).await;
        assert_eq!(answers.len(), 2, "{answers:?}");
        assert_eq!(answers[0].name, "http://127.0.0.1:1");
        assert!(answers.iter().all(|answer| answer.body.is_err()), "{answers:?}");
    }
}
