//! Finds out why a server ends a TLS connection.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, Error};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::client::{ClientFiles, ClientTls};
use super::{Cause, provider};

/// Limit of the connection, of the handshake, and of what the server says then.
const LIMIT: Duration = Duration::from_secs(1);

/// Finds out why the server at `host:port` refuses a TLS connection of a caller with these files. `None` if TLS is not
/// the cause, or if the server does not say so within 3 s.
///
/// With TLS 1.3 a server refuses the caller's certificate, or that there is none, after the handshake. A caller who has
/// sent a request by then may lose the reason, because the server closes the connection before it has read the request.
/// So the probe sends no request. Must be called within a tokio runtime.
pub async fn probe(files: &ClientFiles, host: &str, port: u16) -> Option<Cause> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let config = config(files)?;
    let stream = timeout(LIMIT, TcpStream::connect((host, port)))
        .await
        .ok()?
        .ok()?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let mut stream = match timeout(LIMIT, connecting).await.ok()? {
        Ok(stream) => stream,
        Err(error) => return Cause::of(&error),
    };
    let error = timeout(LIMIT, stream.read_u8()).await.ok()?.err()?;
    Cause::of(&error)
}

/// `None` if the files can't be used.
fn config(files: &ClientFiles) -> Option<ClientConfig> {
    let verifier = ClientTls::open(files).ok()?.verifier();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).ok()?.collect();
            let key = PrivateKeyDer::from_pem_file(key).ok()?;
            let with_certificate: Result<_, Error> = builder.with_client_auth_cert(chain.ok()?, key);
            with_certificate.ok()?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Some(config)
}
