//! The HTTP client: pooled connections, timeouts, no redirects, no proxies.

use std::{error::Error as _, fs, sync::Arc, time::Duration};

use herald_model::time::Timestamp;
use http::{HeaderMap, header::RETRY_AFTER};
use reqwest::{Certificate, Response, redirect};
use tokio::sync::Semaphore;
use tracing::warn;
use url::Url;

use super::resolver::{PrivateAddresses, Resolver};
use crate::{Config, Error, domain::Reason};

/// Limit of the response body that is read so that the connection can be reused; a longer body closes it.
const RESPONSE_BYTES_MAX: usize = 16 * 1024;

/// Maximum time in which a response body is read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of response bodies that are read at a time; the connections of further ones are closed.
const DRAINS_MAX: usize = 256;

/// Time after which an idle connection is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Headers and body of a POST request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// The response of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProviderResponse {
    pub(crate) status: u16,
    /// The `Retry-After` header, if any.
    pub(crate) retry_after: Option<Duration>,
}

/// Why there is no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProviderError {
    /// A retry can succeed.
    Transient(Reason),
    /// A retry can't succeed.
    Permanent(Reason),
}

/// The HTTP client. Clones share the connection pool.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    drains: Arc<Semaphore>,
}

impl Client {
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        // Fails if the process has already installed a provider; any provider works.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("herald-push/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .no_proxy()
                .timeout(config.request_timeout())
                .connect_timeout(config.connect_timeout())
                .pool_idle_timeout(IDLE_TIMEOUT)
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
            // Without certificate authorities, plain http still works where it is allowed. Every https request fails
            // with a connection error, so its pushes stay pending.
            Err(error) if config.ca_file.is_none() => {
                warn!(%error, "no system certificate authorities found; set push.ca_file to push over https");
                builder().tls_certs_only([]).build().map_err(Error::Client)?
            }
            Err(error) => return Err(Error::Client(error)),
        };
        Ok(Self {
            http,
            drains: Arc::new(Semaphore::new(DRAINS_MAX)),
        })
    }

    /// Sends a request and waits for the response.
    pub(crate) async fn post(&self, url: Url, request: Request) -> Result<ProviderResponse, ProviderError> {
        let sent = self
            .http
            .post(url)
            .headers(request.headers)
            .body(request.body)
            .send()
            .await;
        let response = sent.map_err(|error| classify(&error))?;
        let provider_response = ProviderResponse {
            status: response.status().as_u16(),
            retry_after: response
                .headers()
                .get(RETRY_AFTER)
                .and_then(|value| parse_retry_after(value.to_str().ok()?, Timestamp::now())),
        };
        self.drain(response);
        Ok(provider_response)
    }

    /// Reads the rest of a response in the background, so that its connection can be reused. Only the status counts: a
    /// body that is long, slow or never ends holds nothing up, and its connection is closed.
    fn drain(&self, mut response: Response) {
        if response.content_length() == Some(0) {
            return;
        }
        let Ok(permit) = self.drains.clone().try_acquire_owned() else {
            return;
        };
        tokio::spawn(async move {
            let _permit = permit;
            let read = async {
                let mut read = 0;
                while let Ok(Some(part)) = response.chunk().await {
                    read += part.len();
                    if read > RESPONSE_BYTES_MAX {
                        break;
                    }
                }
            };
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, read).await;
        });
    }
}

fn classify(error: &reqwest::Error) -> ProviderError {
    let mut source = error.source();
    while let Some(inner) = source {
        if inner.is::<PrivateAddresses>() {
            return ProviderError::Permanent(Reason::Endpoint);
        }
        source = inner.source();
    }
    if error.is_builder() {
        ProviderError::Permanent(Reason::Endpoint)
    } else if error.is_timeout() {
        ProviderError::Transient(Reason::Timeout)
    } else {
        ProviderError::Transient(Reason::Connection)
    }
}

/// Parses a `Retry-After` header: seconds or an HTTP date (RFC 9110 §10.2.3).
fn parse_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
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

    async fn post(config: &Config, url: &str) -> Result<ProviderResponse, ProviderError> {
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
    fn retry_after_is_seconds_or_a_date() {
        let now = Timestamp(784_111_777_000_000); // Sun, 06 Nov 1994 08:49:37 GMT
        let secs = |s| Some(Duration::from_secs(s));
        assert_eq!(parse_retry_after("120", now), secs(120));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:50:37 GMT", now), secs(60));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), secs(0));
        assert_eq!(parse_retry_after("soon", now), None);
        assert_eq!(parse_retry_after("-1", now), None);
    }

    #[tokio::test]
    async fn a_refused_connection_is_a_connection_error() {
        assert_eq!(
            post(&local(), "http://127.0.0.1:1/").await,
            Err(ProviderError::Transient(Reason::Connection))
        );
    }

    #[tokio::test]
    async fn a_host_that_does_not_respond_is_a_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        assert_eq!(
            post(&local(), &url).await,
            Err(ProviderError::Transient(Reason::Timeout))
        );
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_loopback_is_refused() {
        let config = Config {
            endpoints: Policy {
                allow_http: true,
                allow_private: false,
            },
            ..local()
        };
        assert_eq!(
            post(&config, "http://localhost:9/").await,
            Err(ProviderError::Permanent(Reason::Endpoint))
        );
    }

    #[tokio::test]
    async fn https_to_a_plain_http_server_is_a_connection_error() {
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
            Err(ProviderError::Transient(Reason::Connection))
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
            let response =
                b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
            connection.write_all(response).await.unwrap();
            connection
        });
        assert_eq!(
            post(&local(), &url).await,
            Ok(ProviderResponse {
                status: 302,
                retry_after: None
            })
        );
        server.await.unwrap();
    }

    #[test]
    fn a_missing_or_malformed_ca_file_is_an_error() {
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
