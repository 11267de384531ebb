//! How commands call a server: with which deadline, credential and files of TLS.

use std::{fmt, fs, path::Path, time::Duration};

use herald_runtime::{
    tls::{self, ClientFiles, ClientTls, ErrorKind},
    trace::Inject,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

use crate::{failure::Failure, port::Port};

/// The variable with the credential itself.
const TOKEN_VARIABLE: &str = "HERALD_TOKEN";

/// What the clients of a command have in common.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Time limit of each unary call.
    pub deadline: Duration,
    /// Who calls.
    pub credential: Credential,
    /// For `https://` servers.
    pub tls: CallerTls,
}

/// How `https://` servers are verified, and which certificate they are shown.
#[derive(Debug, Clone)]
pub enum CallerTls {
    /// By files.
    Files(ClientFiles),
    /// As it was made elsewhere: for the calls of a process to its own port.
    Made(ClientTls),
}

impl CallerTls {
    /// Refuses files of TLS for a server that is called without it: the caller would believe that it is verified.
    pub(crate) fn refuse_for_plain(&self, server: &str, port: Port) -> Result<(), Failure> {
        let Self::Files(files) = self else { return Ok(()) };
        let options = match (&files.authorities, &files.identity) {
            (None, None) => return Ok(()),
            (Some(_), None) => "--ca-file (HERALD_CA_FILE) is",
            (None, Some(_)) => "--cert-file and --key-file (HERALD_CERT_FILE, HERALD_KEY_FILE) are",
            (Some(_), Some(_)) => {
                "--ca-file, --cert-file and --key-file (HERALD_CA_FILE, HERALD_CERT_FILE, HERALD_KEY_FILE) are"
            }
        };
        let secure = server.replacen("http://", "https://", 1);
        Err(Failure::usage(format!(
            "{options} only for https:// servers, and {server} would be called without TLS"
        ))
        .hint(format!(
            "call {secure} with {}, or leave the files out",
            port.option()
        )))
    }
}

/// A file of TLS that can't be used, by the option that names it.
pub(crate) fn unusable_file(error: &tls::Error) -> Failure {
    let option = format!(
        "--{} (HERALD_{})",
        error.setting.replace('_', "-"),
        error.setting.to_uppercase()
    );
    let message = error.to_string().replacen(error.setting, &option, 1);
    let hint = match (error.setting, &error.kind) {
        ("ca_file", _) => {
            "name a PEM file with the certificate of the server's authority; `herald up --tls` prints its file when it is ready"
        }
        (_, ErrorKind::OtherKey) => "name a certificate and its own key",
        _ => "name PEM files of a certificate and of its key that this user can read",
    };
    Failure::usage(message).hint(hint)
}

impl From<Duration> for Caller {
    /// A caller without credential or certificate, that accepts servers of the system's authorities.
    fn from(deadline: Duration) -> Self {
        Self {
            deadline,
            credential: Credential::default(),
            tls: CallerTls::Files(ClientFiles::default()),
        }
    }
}

/// An API key or a token, sent as the metadata `authorization` of each call; or none. It is never printed.
#[derive(Clone, Default)]
pub struct Credential(Option<MetadataValue<Ascii>>);

impl Credential {
    /// A credential. Blanks around it are no part of it.
    ///
    /// # Errors
    /// `Usage` if it is empty, or can't be in a header. The message does not have it.
    pub fn new(token: &str) -> Result<Self, Failure> {
        let token = token.trim();
        let is_valid = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let value = format!("Bearer {token}").parse::<MetadataValue<Ascii>>();
        match value {
            Ok(mut value) if is_valid => {
                // Neither printed nor put into the table of headers of the connection.
                value.set_sensitive(true);
                Ok(Self(Some(value)))
            }
            _ => Err(Failure::usage(
                "the API key or token is empty, or is not one word of visible ASCII",
            )),
        }
    }

    /// The credential of a file, or of `HERALD_TOKEN` in the environment; none without either.
    pub(crate) fn find(file: Option<&Path>) -> Result<Self, Failure> {
        if let Some(file) = file {
            let text = fs::read_to_string(file).map_err(|error| {
                Failure::usage(format!(
                    "can't read the file {} of --token-file (HERALD_TOKEN_FILE): {error}",
                    file.display()
                ))
            })?;
            let origin = format!("the file {} of --token-file (HERALD_TOKEN_FILE)", file.display());
            return Self::new(&text).map_err(|failure| failure.during(&origin));
        }
        match std::env::var(TOKEN_VARIABLE) {
            Ok(token) if !token.is_empty() => {
                Self::new(&token).map_err(|failure| failure.during(TOKEN_VARIABLE))
            }
            _ => Ok(Self::default()),
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "Credential([hidden])"
        } else {
            "Credential(none)"
        })
    }
}

/// Sends the trace context and the credential with each call.
#[derive(Debug, Clone)]
pub struct Sent(pub(crate) Credential);

impl Interceptor for Sent {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let mut request = Inject.call(request)?;
        if let Some(credential) = &self.0.0 {
            request.metadata_mut().insert("authorization", credential.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    #[test]
    fn a_credential_is_sent_and_never_printed() {
        let credential = Credential::new(" hk_secret\n").unwrap();
        assert_eq!(format!("{credential:?}"), "Credential([hidden])");
        let request = Sent(credential).call(Request::new(())).unwrap();
        let sent = request.metadata().get("authorization").unwrap();
        assert_eq!(sent.to_str().unwrap(), "Bearer hk_secret");
        assert!(!format!("{sent:?}").contains("secret"));
        let request = Sent(Credential::default()).call(Request::new(())).unwrap();
        assert!(request.metadata().get("authorization").is_none());
    }

    #[test]
    fn what_is_no_credential_is_refused_and_not_repeated() {
        for text in ["", " \n", "two words", "ünal", "a\u{7f}b"] {
            let failure = Credential::new(text).unwrap_err();
            assert!(
                text.trim().is_empty() || !failure.message().contains(text),
                "{text:?}"
            );
        }
    }

    #[test]
    fn files_of_tls_are_refused_for_a_server_without_it() {
        let files = |authorities: Option<&str>, identity: Option<(&str, &str)>| {
            CallerTls::Files(ClientFiles {
                authorities: authorities.map(Into::into),
                identity: identity.map(|(certificate, key)| (certificate.into(), key.into())),
            })
        };
        let refused = |tls: CallerTls| tls.refuse_for_plain("http://host:7700", Port::Public);
        assert!(refused(files(None, None)).is_ok());
        for (tls, option) in [
            (files(Some("ca.pem"), None), "--ca-file"),
            (
                files(None, Some(("a.pem", "a.key"))),
                "--cert-file and --key-file",
            ),
            (
                files(Some("ca.pem"), Some(("a.pem", "a.key"))),
                "--ca-file, --cert-file",
            ),
        ] {
            let failure = refused(tls).unwrap_err();
            assert_eq!(failure.kind(), Kind::Usage);
            assert!(failure.message().starts_with(option), "{failure:?}");
            assert!(
                failure.text().contains("call https://host:7700 with --server"),
                "{failure:?}"
            );
        }
    }

    #[test]
    fn a_file_of_tls_that_can_not_be_used_is_named_by_its_option() {
        let files = ClientFiles {
            authorities: Some("/nowhere/ca.pem".into()),
            identity: None,
        };
        let failure = unusable_file(&ClientTls::open(&files).unwrap_err());
        assert_eq!(failure.kind(), Kind::Usage);
        let text = failure.text();
        assert!(
            text.contains("--ca-file (HERALD_CA_FILE) can't be read: /nowhere/ca.pem: "),
            "{text}"
        );
        assert!(text.contains("`herald up --tls` prints its file"), "{text}");
    }

    #[test]
    fn a_file_has_the_credential() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, "abc\n").unwrap();
        assert!(Credential::find(Some(&file)).unwrap().0.is_some());
        assert!(Credential::find(Some(&dir.path().join("none"))).is_err());
        fs::write(&file, "two words").unwrap();
        let failure = Credential::find(Some(&file)).unwrap_err();
        let message = failure.message();
        assert!(
            message.contains("--token-file") && message.contains(file.to_str().unwrap()),
            "{message}"
        );
        assert!(!message.contains("two words"), "{message}");
    }
}
