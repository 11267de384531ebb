//! Where the issuer's keys are read.

use std::{error::Error as _, fs, path::PathBuf, time::Duration};

use reqwest::{Certificate, redirect};

use crate::{Error, JwtConfig};

/// Maximum time of a read, the connection included.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of the keys, bytes. Issuers have 1 to 10 KB.
const BYTES_MAX: usize = 1 << 20;

/// The source of the issuer's keys.
pub(super) enum Source {
    Url { client: reqwest::Client, url: String },
    File(PathBuf),
}

/// Why the keys can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{0}")]
    Http(String),
    #[error("the server answers with status {0}")]
    Status(u16),
    #[error("they have more than {BYTES_MAX} bytes")]
    TooLarge,
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, std::io::Error),
}

impl From<reqwest::Error> for ReadError {
    fn from(error: reqwest::Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        Self::Http(text)
    }
}

impl Source {
    pub(super) fn new(config: &JwtConfig) -> Result<Self, Error> {
        if let Some(file) = &config.jwks_file {
            return Ok(Self::File(file.clone()));
        }
        // Fails if the process has already installed a provider; any provider works.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authorities = match &config.ca_file {
            Some(path) => {
                let failed = |error: &dyn std::fmt::Display| {
                    Error::AuthorityFile(format!("{}: {error}", path.display()))
                };
                let pem = fs::read(path).map_err(|error| failed(&error))?;
                Certificate::from_pem_bundle(&pem).map_err(|error| failed(&error))?
            }
            None => Vec::new(),
        };
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("herald/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .no_proxy()
                .timeout(READ_TIMEOUT)
        };
        let client = match builder().tls_certs_merge(authorities).build() {
            Ok(client) => client,
            // Without certificate authorities of the system, http on loopback still works.
            Err(_) if config.ca_file.is_none() => {
                builder().tls_certs_only([]).build().map_err(Error::Client)?
            }
            Err(error) => return Err(Error::Client(error)),
        };
        Ok(Self::Url {
            client,
            url: config.jwks_url.clone(),
        })
    }

    /// Reads the keys.
    pub(super) async fn read(&self) -> Result<Vec<u8>, ReadError> {
        match self {
            Self::File(path) => {
                let path = path.clone();
                let text = tokio::fs::read(&path)
                    .await
                    .map_err(|error| ReadError::File(path, error))?;
                if text.len() > BYTES_MAX {
                    Err(ReadError::TooLarge)
                } else {
                    Ok(text)
                }
            }
            Self::Url { client, url } => {
                let mut response = client
                    .get(url)
                    .header("accept", "application/json")
                    .send()
                    .await?;
                if !response.status().is_success() {
                    return Err(ReadError::Status(response.status().as_u16()));
                }
                let mut text = Vec::new();
                while let Some(chunk) = response.chunk().await? {
                    if text.len() + chunk.len() > BYTES_MAX {
                        return Err(ReadError::TooLarge);
                    }
                    text.extend_from_slice(&chunk);
                }
                Ok(text)
            }
        }
    }
}
