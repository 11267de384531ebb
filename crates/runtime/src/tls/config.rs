//! The settings of TLS.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::files::is_open_to_others;
use super::{ClientFiles, Error, ServerFiles};

/// TLS of the ports that clients call. The files are PEM, and read again when they change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate chain of the server, its own certificate first. Set: clients must use TLS 1.2 or later.
    pub cert_file: Option<PathBuf>,
    /// The private key of the certificate. It should be readable by Herald alone.
    pub key_file: Option<PathBuf>,
    /// The authorities of client certificates. Unset: clients are not asked for certificates.
    pub client_ca_file: Option<PathBuf>,
    /// Whether a client must have a certificate of `client_ca_file`: `required`, or `optional`. A certificate of another
    /// authority or one that has expired is refused in both cases.
    pub client_certificates: ClientCertificates,
}

/// Whether clients must have a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// A client without a certificate is accepted.
    Optional,
    /// A client without a certificate is refused.
    #[default]
    Required,
}

/// TLS between roles: of the ports that other processes of Herald call, and of the calls to `https://` peers. The files are
/// PEM, and read again when they change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InternalTlsConfig {
    /// The certificate chain of this process, its own certificate first. Callers verify the host name of the peer's URL by it;
    /// and this process shows it to the peers that it calls, so it must be valid for servers and clients.
    pub cert_file: Option<PathBuf>,
    /// The private key of the certificate. It should be readable by Herald alone.
    pub key_file: Option<PathBuf>,
    /// The authorities that the certificates of peers are verified with. Unset: those of the system.
    pub ca_file: Option<PathBuf>,
    /// The authorities of the callers' certificates. Set: a caller without a valid certificate is refused.
    pub client_ca_file: Option<PathBuf>,
}

impl TlsConfig {
    /// The files of the ports; `None` without TLS.
    pub fn server(&self) -> Option<ServerFiles> {
        server(
            self.cert_file.as_ref(),
            self.key_file.as_ref(),
            self.client_ca_file.as_ref(),
            self.client_certificates,
        )
    }

    /// Whether only clients with a certificate are accepted.
    pub fn requires_client_certificates(&self) -> bool {
        let required = self.client_certificates == ClientCertificates::Required;
        required && self.cert_file.is_some() && self.client_ca_file.is_some()
    }

    /// Checks the values, and reads no file. The error starts with the key of the invalid setting.
    pub fn validate(&self) -> Result<(), String> {
        validate(
            self.cert_file.as_ref(),
            self.key_file.as_ref(),
            self.client_ca_file.as_ref(),
        )
        .map_err(
            |error| match (&self.client_ca_file, &self.cert_file, &self.key_file) {
                (Some(_), None, None) => {
                    format!("{error}; the certificate of `herald up --tls` can't be combined with it")
                }
                _ => error,
            },
        )
    }

    /// Checks that the files can be used. The error starts with the key of the invalid setting.
    pub fn check_files(&self) -> Result<(), Error> {
        self.server().map_or(Ok(()), |files| files.check())
    }

    /// The private key if every user of the machine may read it.
    pub fn open_key(&self) -> Option<&PathBuf> {
        self.key_file.as_ref().filter(|file| is_open_to_others(file))
    }
}

impl InternalTlsConfig {
    /// The files of the ports; `None` without TLS.
    pub fn server(&self) -> Option<ServerFiles> {
        server(
            self.cert_file.as_ref(),
            self.key_file.as_ref(),
            self.client_ca_file.as_ref(),
            ClientCertificates::Required,
        )
    }

    /// The files of the calls to peers.
    pub fn client(&self) -> ClientFiles {
        ClientFiles {
            authorities: self.ca_file.clone(),
            identity: self.identity(),
        }
    }

    /// The certificate of this process, and its private key.
    pub fn identity(&self) -> Option<(PathBuf, PathBuf)> {
        self.cert_file.clone().zip(self.key_file.clone())
    }

    /// Whether only callers with a certificate are accepted.
    pub fn requires_client_certificates(&self) -> bool {
        self.cert_file.is_some() && self.client_ca_file.is_some()
    }

    /// Checks the values, and reads no file. The error starts with the key of the invalid setting.
    pub fn validate(&self) -> Result<(), String> {
        validate(
            self.cert_file.as_ref(),
            self.key_file.as_ref(),
            self.client_ca_file.as_ref(),
        )
    }

    /// Checks that the files can be used. The error starts with the key of the invalid setting.
    pub fn check_files(&self) -> Result<(), Error> {
        self.client().check()?;
        self.server().map_or(Ok(()), |files| files.check())
    }

    /// The private key if every user of the machine may read it.
    pub fn open_key(&self) -> Option<&PathBuf> {
        self.key_file.as_ref().filter(|file| is_open_to_others(file))
    }
}

fn server(
    certificate: Option<&PathBuf>,
    key: Option<&PathBuf>,
    authorities: Option<&PathBuf>,
    clients: ClientCertificates,
) -> Option<ServerFiles> {
    let (certificate, key) = certificate.cloned().zip(key.cloned())?;
    Some(ServerFiles {
        certificate,
        key,
        clients: authorities.cloned().map(|file| (file, clients)),
    })
}

fn validate(
    certificate: Option<&PathBuf>,
    key: Option<&PathBuf>,
    authorities: Option<&PathBuf>,
) -> Result<(), String> {
    match (certificate, key, authorities) {
        (Some(_), None, _) => Err("key_file must be set, because cert_file is".into()),
        (None, Some(_), _) => Err("cert_file must be set, because key_file is".into()),
        (None, None, Some(_)) => Err(
            "client_ca_file must not be set without cert_file and key_file: clients show their certificates over TLS alone; set a \
             certificate of the server's own, or unset client_ca_file"
                .into(),
        ),
        _ => Ok(()),
    }
}
