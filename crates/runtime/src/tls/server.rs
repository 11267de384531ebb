//! The certificate of a port, and which clients it accepts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{Accept, TlsAcceptor};

use super::expiry::first_end;
use super::files::{Error, Pem, PemFile};
use super::reload::Reloading;
use super::{ClientCertificates, provider};

/// Certificates of the process that its own calls accept: the current one and the one before, as a handshake can have begun
/// with that.
const OWN_CERTIFICATES: usize = 2;

/// The files of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// The certificate chain, `cert_file`.
    pub certificate: PathBuf,
    /// Its private key, `key_file`.
    pub key: PathBuf,
    /// The authorities of client certificates, `client_ca_file`, and whether clients must have one.
    pub clients: Option<(PathBuf, ClientCertificates)>,
}

/// The protocols that a port offers by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocols {
    /// HTTP/2.
    Http2,
    /// HTTP/2 and HTTP/1.1, which gRPC-Web can use.
    Http2AndHttp1,
}

/// TLS of a port. Clones share it.
#[derive(Clone)]
pub struct ServerTls {
    current: Reloading<Served>,
    own: OwnCertificates,
}

struct Served {
    config: Arc<ServerConfig>,
    /// The earliest end of the certificates of the chain, seconds since 1970. `None` if none of them can be read.
    not_after: Option<i64>,
}

/// The newest certificates of the process, the current one last.
type OwnCertificates = Arc<Mutex<Vec<CertificateDer<'static>>>>;

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files, and follows their changes. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error`] names a file that can't be used.
    pub fn open(files: &ServerFiles, protocols: Protocols) -> Result<Self, Error> {
        let own = OwnCertificates::default();
        let (list, required) = (files.list(), files.required());
        let current = {
            let own = own.clone();
            Reloading::open(list, move |contents| {
                let (config, chain) = build(contents, required, protocols)?;
                let mut own = own.lock();
                if own.len() == OWN_CERTIFICATES {
                    own.remove(0);
                }
                own.push(chain[0].clone());
                Ok(Served {
                    config: Arc::new(config),
                    not_after: first_end(&chain),
                })
            })?
        };
        Ok(Self { current, own })
    }

    /// Begins the handshake with a client.
    pub(crate) fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Accept<S> {
        TlsAcceptor::from(self.current.current().config.clone()).accept(stream)
    }

    /// Whether this is one of the newest certificates that this process serves or has served.
    pub(super) fn has_served(&self, certificate: &CertificateDer<'_>) -> bool {
        self.own.lock().iter().any(|own| own == certificate)
    }

    /// The end of the certificate that is served now, or of an authority in its file if that ends earlier, in seconds
    /// since 1970. `None` if none of them can be read.
    pub(super) fn not_after(&self) -> Option<i64> {
        self.current.current().not_after
    }
}

impl ServerFiles {
    /// Checks that the files can be used together.
    pub(super) fn check(&self) -> Result<(), Error> {
        let contents: Result<Vec<_>, _> = self.list().iter().map(PemFile::read).collect();
        build(&contents?, self.required(), Protocols::Http2).map(drop)
    }

    fn list(&self) -> Vec<PemFile> {
        let mut files = vec![
            PemFile::new("cert_file", &self.certificate),
            PemFile::new("key_file", &self.key),
        ];
        files.extend(
            self.client_authorities()
                .map(|path| PemFile::new("client_ca_file", path)),
        );
        files
    }

    fn client_authorities(&self) -> Option<&Path> {
        self.clients.as_ref().map(|(path, _)| path.as_path())
    }

    fn required(&self) -> ClientCertificates {
        self.clients
            .as_ref()
            .map_or(ClientCertificates::Optional, |(_, required)| *required)
    }
}

/// The configuration of rustls, and the certificate chain.
fn build(
    contents: &[Pem],
    clients: ClientCertificates,
    protocols: Protocols,
) -> Result<(ServerConfig, Vec<CertificateDer<'static>>), Error> {
    let [certificate, key, rest @ ..] = contents else {
        unreachable!("a port has a certificate and a key");
    };
    let certified: CertifiedKey = certificate.certified(key)?;
    let chain = certified.cert.clone();
    let verifier = match rest.first() {
        Some(authorities) => verifier(authorities, clients)?,
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .map_err(|error| certificate.invalid(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = match protocols {
        Protocols::Http2 => vec![b"h2".to_vec()],
        Protocols::Http2AndHttp1 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    Ok((config, chain))
}

fn verifier(authorities: &Pem, clients: ClientCertificates) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let builder = WebPkiClientVerifier::builder_with_provider(authorities.authorities()?, provider());
    let builder = match clients {
        ClientCertificates::Required => builder,
        ClientCertificates::Optional => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|error| authorities.invalid(&error))
}
