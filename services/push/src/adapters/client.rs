//! The HTTP client: pooled connections, no redirects, no proxies, bounded times.

use std::{error::Error as _, fs, sync::Arc, time::Duration};

use herald_model::time::Timestamp;
use http::{HeaderMap, header::RETRY_AFTER};
use reqwest::{Certificate, redirect};
use tracing::warn;
use url::Url;

use super::resolver::{PrivateAddresses, Resolver};
use crate::{Config, Error, domain::Reason};

/// As much of an answer's body is read, so that the connection can be used again; the rest closes it.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// How long a connection stays open without use.
const IDLE: Duration = Duration::from_secs(90);

/// A POST.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// What a provider answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProviderError {
    /// Another try can help.
    Later(Reason),
    /// None can.
    Refused(Reason),
}

/// The HTTP client. Cloning shares the connections.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
}

impl Client {
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        // The process may have chosen already; then that is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("herald-push/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .no_proxy()
                .timeout(config.request_timeout())
                .connect_timeout(config.connect_timeout())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(config.sends_per_host_max)
                .dns_resolver(Arc::new(Resolver {
                    allow_private: config.endpoints.allow_private,
                }))
        };
        let extra = match &config.ca_file {
            Some(path) => {
                let pem = fs::read(path).map_err(|source| Error::File {
                    path: path.clone(),
                    source,
                })?;
                Certificate::from_pem_bundle(&pem).map_err(Error::Client)?
            }
            None => Vec::new(),
        };
        let http = match builder().tls_certs_merge(extra).build() {
            Ok(http) => http,
            // A machine without any certificate authority can still push over plain http where that is allowed; over
            // https each certificate is unknown then, and the pushes are pending.
            Err(error) if config.ca_file.is_none() => {
                warn!(%error, "no certificate authorities of the system found; set push.ca_file to push over https");
                builder().tls_certs_only([]).build().map_err(Error::Client)?
            }
            Err(error) => return Err(Error::Client(error)),
        };
        Ok(Self { http })
    }

    /// Sends a request and waits for the answer.
    pub(crate) async fn post(&self, url: Url, request: Request) -> Result<Answer, ProviderError> {
        let sent = self
            .http
            .post(url)
            .headers(request.headers)
            .body(request.body)
            .send()
            .await;
        let mut response = sent.map_err(|error| failure(&error))?;
        let answer = Answer {
            status: response.status().as_u16(),
            retry_after: response
                .headers()
                .get(RETRY_AFTER)
                .and_then(|value| retry_after(value.to_str().ok()?, Timestamp::now())),
        };
        // The status is what counts; a body that breaks off only costs the connection.
        let mut read = 0;
        while let Ok(Some(part)) = response.chunk().await {
            read += part.len();
            if read > ANSWER_BYTES_MAX {
                break;
            }
        }
        Ok(answer)
    }
}

fn failure(error: &reqwest::Error) -> ProviderError {
    let mut source = error.source();
    while let Some(inner) = source {
        if inner.is::<PrivateAddresses>() {
            return ProviderError::Refused(Reason::Endpoint);
        }
        source = inner.source();
    }
    if error.is_builder() {
        ProviderError::Refused(Reason::Endpoint)
    } else if error.is_timeout() {
        ProviderError::Later(Reason::Timeout)
    } else {
        ProviderError::Later(Reason::Connection)
    }
}

/// RFC 9110 §10.2.3: seconds, or a date.
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(value.trim()).ok()?;
    Some(Timestamp(date.timestamp().as_microsecond()).since(now))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use herald_push_endpoint::Policy;

    fn local() -> Config {
        Config {
            endpoints: Policy {
                allow_http: true,
                allow_private: true,
            },
            request_timeout_ms: 300,
            ..Config::default()
        }
    }

    async fn post(config: &Config, url: &str) -> Result<Answer, ProviderError> {
        let request = Request {
            headers: HeaderMap::new(),
            body: Vec::new(),
        };
        Client::new(config)
            .unwrap()
            .post(url.parse().unwrap(), request)
            .await
    }

    #[test]
    fn a_wait_is_seconds_or_a_date() {
        let now = Timestamp(784_111_777_000_000); // Sun, 06 Nov 1994 08:49:37 GMT
        let secs = |s| Some(Duration::from_secs(s));
        assert_eq!(retry_after("120", now), secs(120));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:50:37 GMT", now), secs(60));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), secs(0));
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-1", now), None);
    }

    #[tokio::test]
    async fn an_address_that_nobody_listens_on_is_a_connection_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        assert_eq!(
            post(&local(), &url).await,
            Err(ProviderError::Later(Reason::Connection))
        );
    }

    #[tokio::test]
    async fn a_host_that_says_nothing_is_a_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        assert_eq!(
            post(&local(), &url).await,
            Err(ProviderError::Later(Reason::Timeout))
        );
    }

    #[tokio::test]
    async fn a_name_of_this_machine_is_refused() {
        let config = Config {
            endpoints: Policy {
                allow_http: true,
                allow_private: false,
            },
            ..local()
        };
        assert_eq!(
            post(&config, "http://localhost:9/").await,
            Err(ProviderError::Refused(Reason::Endpoint))
        );
    }

    #[tokio::test]
    async fn https_to_something_else_fails_and_does_not_panic() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            connection
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
        });
        assert_eq!(
            post(&local(), &url).await,
            Err(ProviderError::Later(Reason::Connection))
        );
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            connection.read_u8().await.unwrap();
            let answer = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
            connection.write_all(answer).await.unwrap();
            connection
        });
        assert_eq!(
            post(&local(), &url).await,
            Ok(Answer {
                status: 302,
                retry_after: None
            })
        );
        server.await.unwrap();
    }

    #[test]
    fn a_bad_authority_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let config = Config {
            ca_file: Some(path.clone()),
            ..local()
        };
        assert!(matches!(Client::new(&config), Err(Error::File { .. })));
        fs::write(
            &path,
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        )
        .unwrap();
        assert!(matches!(Client::new(&config), Err(Error::Client(_))));
    }
}
