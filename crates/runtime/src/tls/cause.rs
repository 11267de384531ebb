//! Why a call over TLS failed, in words for its caller.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError, InvalidMessage};

/// Why a connection with TLS can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The server's certificate is of an authority that the caller doesn't accept.
    UnknownAuthority,
    /// The server's certificate is for other names or addresses.
    OtherName,
    /// The server's certificate has expired, or is not valid yet.
    Expired,
    /// The server's certificate is not accepted for another reason.
    Refused,
    /// The server doesn't use TLS.
    Plaintext,
    /// The server requires a certificate of the caller.
    CertificateRequired,
    /// The server doesn't accept the caller's certificate.
    CertificateRefused,
}

impl Cause {
    /// Finds it in an error or its sources.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let found = inner
                .and_then(|inner| inner.downcast_ref())
                .or_else(|| error.downcast_ref())
                .and_then(Self::of_rustls)
                .or_else(|| Self::of_text(&error.to_string()));
            if found.is_some() {
                return found;
            }
            next = error.source();
        }
        None
    }

    fn of_rustls(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::InvalidCertificate(error) => Some(match error {
                CertificateError::UnknownIssuer => Self::UnknownAuthority,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::OtherName
                }
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::Expired,
                _ => Self::Refused,
            }),
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Some(Self::Plaintext),
            rustls::Error::AlertReceived(alert) => Self::of_alert(*alert),
            _ => None,
        }
    }

    fn of_alert(alert: AlertDescription) -> Option<Self> {
        match alert {
            AlertDescription::CertificateRequired => Some(Self::CertificateRequired),
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::DecryptError => Some(Self::CertificateRefused),
            _ => None,
        }
    }

    /// From the text of an alert: the HTTP/2 library keeps no more of an error that comes after the handshake.
    fn of_text(text: &str) -> Option<Self> {
        let alert = text.split("received fatal alert: ").nth(1)?;
        let name = alert.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
        let known = [
            AlertDescription::CertificateRequired,
            AlertDescription::UnknownCA,
            AlertDescription::BadCertificate,
            AlertDescription::CertificateExpired,
            AlertDescription::CertificateUnknown,
            AlertDescription::UnsupportedCertificate,
            AlertDescription::DecryptError,
        ];
        let found = known.into_iter().find(|alert| format!("{alert:?}") == name);
        found.and_then(Self::of_alert)
    }
}
