//! PEM files (RFC 7468), and why they can't be used.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::provider;

/// The permission of everybody to read a file.
const OTHERS_READ: u32 = 0o004;

/// Why a file can't be used. The message begins with the key of its setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Key of the setting that names the file, such as `cert_file`.
    pub setting: &'static str,
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub kind: ErrorKind,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// It can't be read; with the error of the operating system.
    Unreadable(String),
    /// It has no certificate.
    NoCertificate,
    /// It has no private key.
    NoKey,
    /// A certificate or key in it can't be decoded or used; with the reason.
    Invalid(String),
    /// The private key belongs to another certificate.
    OtherKey,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (setting, file) = (self.setting, self.file.display());
        match &self.kind {
            ErrorKind::Unreadable(why) => write!(f, "{setting} can't be read: {file}: {why}"),
            ErrorKind::NoCertificate => write!(f, "{setting} has no certificate (PEM): {file}"),
            ErrorKind::NoKey => write!(f, "{setting} has no private key (PEM): {file}"),
            ErrorKind::Invalid(why) => write!(f, "{setting} can't be used: {file}: {why}"),
            ErrorKind::OtherKey => {
                write!(
                    f,
                    "{setting} must have the private key of the certificate in cert_file, has another one: {file}"
                )
            }
        }
    }
}

impl std::error::Error for Error {}

/// A file by the key of its setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PemFile {
    setting: &'static str,
    path: PathBuf,
}

/// The content of a file.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Pem {
    file: PemFile,
    pub(super) bytes: Vec<u8>,
}

impl PemFile {
    pub(super) fn new(setting: &'static str, path: &Path) -> Self {
        Self {
            setting,
            path: path.to_owned(),
        }
    }

    pub(super) fn read(&self) -> Result<Pem, Error> {
        let bytes = std::fs::read(&self.path)
            .map_err(|error| self.error(ErrorKind::Unreadable(error.to_string())))?;
        Ok(Pem {
            file: self.clone(),
            bytes,
        })
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error {
            setting: self.setting,
            file: self.path.clone(),
            kind,
        }
    }
}

impl Pem {
    /// The certificates of a chain, at least one.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        let certificates = certificates.map_err(|error| self.invalid(&without_content(&error)))?;
        if certificates.is_empty() {
            return Err(self.file.error(ErrorKind::NoCertificate));
        }
        Ok(certificates)
    }

    /// The authorities, at least one.
    pub(super) fn authorities(&self) -> Result<Arc<RootCertStore>, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| self.invalid(&error))?;
        }
        Ok(Arc::new(roots))
    }

    /// The certificate chain of this file with the private key of another one.
    pub(super) fn certified(&self, key: &Self) -> Result<CertifiedKey, Error> {
        let chain = self.certificates()?;
        let private = PrivateKeyDer::from_pem_slice(&key.bytes).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => key.file.error(ErrorKind::NoKey),
            error => key.invalid(&without_content(&error)),
        })?;
        CertifiedKey::from_der(chain, private, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => key.file.error(ErrorKind::OtherKey),
            rustls::Error::InvalidCertificate(_) => self.invalid(&error),
            error => key.invalid(&error),
        })
    }

    pub(super) fn name(&self) -> String {
        self.file.path.display().to_string()
    }

    pub(super) fn invalid(&self, error: &dyn fmt::Display) -> Error {
        self.file.error(ErrorKind::Invalid(error.to_string()))
    }
}

/// Describes an error of PEM without text of the file: a key whose line breaks are missing is one line, which the parser
/// repeats.
fn without_content(error: &pem::Error) -> String {
    match error {
        pem::Error::IllegalSectionStart { .. } => {
            "a line that begins with -----BEGIN does not end with -----: are line breaks missing?".into()
        }
        pem::Error::MissingSectionEnd { .. } => "a section has no line that begins with -----END".into(),
        pem::Error::Base64Decode(_) => "a section is not base64".into(),
        error => error.to_string(),
    }
}

/// Whether every user of the machine may read a file; `false` if that is not known.
pub(crate) fn is_open_to_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.mode() & OTHERS_READ != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_damaged_file_has_none_of_its_content() {
        let pem = |bytes: &str| Pem {
            file: PemFile::new("key_file", Path::new("server.key")),
            bytes: bytes.into(),
        };
        for (text, reason) in [
            (
                "-----BEGIN PRIVATE KEY----- hunter2 -----END PRIVATE KEY----- x",
                "line breaks",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nhunter2\n",
                "no line that begins with -----END",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nhunter2!\n-----END PRIVATE KEY-----\n",
                "not base64",
            ),
        ] {
            let error = PrivateKeyDer::from_pem_slice(&pem(text).bytes).unwrap_err();
            let error = pem(text).invalid(&without_content(&error)).to_string();
            assert!(
                error.starts_with("key_file can't be used: server.key: "),
                "{error}"
            );
            assert!(error.contains(reason), "{error}");
            // The parser has lines as lists of bytes.
            assert!(
                !error.contains("hunter2") && !error.contains("104, 117"),
                "{error}"
            );
        }
    }
}
