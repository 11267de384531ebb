//! How the certificates of servers are verified.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::provider;

/// Verifies the certificate of a server in one of two ways, and the signature of the handshake as rustls does.
pub(super) enum Verifier {
    /// By the verifier that the function returns at the moment.
    Current(Box<dyn Fn() -> Arc<dyn ServerCertVerifier> + Send + Sync>),
    /// Accepts certificates for which the function returns `true`, whatever names they have.
    Known(Box<dyn Fn(&CertificateDer<'_>) -> bool + Send + Sync>),
}

impl Verifier {
    /// Accepts no certificate: the verifier of a caller that knows no authority.
    pub(super) fn of_none() -> Self {
        Self::Known(Box::new(|_| false))
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self {
            Self::Current(current) => {
                current().verify_server_cert(certificate, intermediates, name, ocsp_response, now)
            }
            Self::Known(is_known) if is_known(certificate) => Ok(ServerCertVerified::assertion()),
            Self::Known(_) => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}
