//! Whose certificates the callers of other processes accept, and which one they show.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::transport::{ClientTlsConfig, Endpoint, Identity};

use super::files::{Error, Pem, PemFile};
use super::provider;
use super::reload::Reloading;
use super::server::ServerTls;
use super::verify::Verifier;

/// Limit of a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The files of a caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// The authorities of servers, `ca_file`. `None`: those of the operating system.
    pub authorities: Option<PathBuf>,
    /// The certificate chain that the caller shows, and its private key: `cert_file`, `key_file`.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// TLS of calls to other processes. Clones share it.
#[derive(Clone)]
pub struct ClientTls(Reloading<Parts>);

struct Parts {
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Option<Identity>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files, and follows their changes. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error`] names a file that can't be used.
    pub fn open(files: &ClientFiles) -> Result<Self, Error> {
        let has_authorities = files.authorities.is_some();
        Reloading::open(files.list(), move |contents| {
            let (authorities, identity) = contents.split_at(usize::from(has_authorities));
            Ok(Parts {
                verifier: verifier(authorities.first())?,
                identity: identity_of(identity)?,
            })
        })
        .map(Self)
    }

    /// For the calls of a process to its own port, over loopback: accepts the certificate of that port alone, whatever name
    /// it has. Shows the certificate of `identity`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error`] names a file that can't be used.
    pub fn to_self(server: &ServerTls, identity: Option<(PathBuf, PathBuf)>) -> Result<Self, Error> {
        let server = server.clone();
        let files = ClientFiles {
            authorities: None,
            identity,
        };
        Reloading::open(files.list(), move |contents| {
            let server = server.clone();
            let is_own = move |certificate: &CertificateDer<'_>| server.has_served(certificate);
            Ok(Parts {
                verifier: Arc::new(Verifier::Known(Box::new(is_own))),
                identity: identity_of(contents)?,
            })
        })
        .map(Self)
    }

    /// Adds TLS to an endpoint whose server must have a certificate for `host`, a name or an IP address. The endpoint has
    /// the caller's certificate of now, and verifies by the authorities of the moment of each connection.
    ///
    /// # Errors
    /// `host` is no name or address, or tonic refuses the configuration.
    pub fn apply(&self, endpoint: Endpoint, host: &str) -> Result<Endpoint, tonic::transport::Error> {
        let config = ClientTlsConfig::new()
            .domain_name(host.trim_start_matches('[').trim_end_matches(']'))
            .timeout(HANDSHAKE_TIMEOUT);
        let config = match &self.0.current().identity {
            Some(identity) => config.identity(identity.clone()),
            None => config,
        };
        endpoint.tls_config_with_verifier(config, self.verifier())
    }

    /// Verifies servers by the authorities of the moment.
    pub(super) fn verifier(&self) -> Arc<dyn ServerCertVerifier> {
        let parts = self.0.clone();
        Arc::new(Verifier::Current(Box::new(move || {
            parts.current().verifier.clone()
        })))
    }

    /// Follows the changes after which [`ClientTls::apply`] gives another endpoint.
    pub fn changes(&self) -> Changes {
        Changes(self.0.subscribe())
    }
}

/// Changes of the files of a caller.
pub struct Changes(watch::Receiver<Arc<Parts>>);

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl Changes {
    /// Whether there was a change since the last call.
    pub(crate) fn take(&mut self) -> bool {
        let changed = self.0.has_changed().unwrap_or(false);
        self.0.mark_unchanged();
        changed
    }

    /// Waits for a change; `false` if there will be none.
    pub async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

impl ClientFiles {
    /// Checks that the files can be used together.
    pub(super) fn check(&self) -> Result<(), Error> {
        let contents: Result<Vec<_>, _> = self.list().iter().map(PemFile::read).collect();
        let contents = contents?;
        let (authorities, identity) = contents.split_at(usize::from(self.authorities.is_some()));
        if let Some(authorities) = authorities.first() {
            authorities.authorities()?;
        }
        identity_of(identity).map(drop)
    }

    fn list(&self) -> Vec<PemFile> {
        let authorities = self.authorities.iter().map(|path| PemFile::new("ca_file", path));
        let identity = self.identity.iter().flat_map(|(certificate, key)| {
            [
                PemFile::new("cert_file", certificate),
                PemFile::new("key_file", key),
            ]
        });
        authorities.chain(identity).collect()
    }
}

/// The verifier of servers: by the authorities of a file, or those of the operating system.
fn verifier(authorities: Option<&Pem>) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let roots = match authorities {
        Some(authorities) => authorities.authorities()?,
        None => Arc::new(system_authorities()),
    };
    if roots.is_empty() {
        // A system without authorities: every certificate is one of an unknown issuer.
        return Ok(Arc::new(Verifier::of_none()));
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
    match (verifier, authorities) {
        (Ok(verifier), _) => Ok(verifier),
        (Err(error), Some(authorities)) => Err(authorities.invalid(&error)),
        (Err(_), None) => Ok(Arc::new(Verifier::of_none())),
    }
}

fn system_authorities() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "can't read an authority of the system");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

/// The certificate and key that a caller shows, if there are any.
fn identity_of(contents: &[Pem]) -> Result<Option<Identity>, Error> {
    let [certificate, key] = contents else {
        return Ok(None);
    };
    certificate.certified(key)?;
    Ok(Some(Identity::from_pem(&certificate.bytes, &key.bytes)))
}
