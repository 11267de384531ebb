//! How a client identifies itself to the server, and TLS.

use std::fmt;
use std::path::PathBuf;

use async_nats::{ConnectOptions, ServerAddr};
use nkeys::{KeyPair, KeyPairType};
use percent_encoding::percent_decode_str;

use crate::error::{Error, ErrorKind, Result};

/// How a client identifies itself. `Debug` hides the secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// By what the URLs contain; by nothing if they contain no credentials.
    #[default]
    Urls,
    /// By user name and password.
    Password {
        /// The user name.
        user: String,
        /// The password.
        password: String,
    },
    /// By a token.
    Token(String),
    /// By an NKey: the seed, `SU…`.
    NKey(String),
    /// By the content of a credentials file: a user JWT and its seed.
    Credentials(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Urls => "Urls",
            Self::Password { .. } => "Password",
            Self::Token(_) => "Token",
            Self::NKey(_) => "NKey",
            Self::Credentials(_) => "Credentials",
        })
    }
}

/// TLS settings. Without them, TLS is used when the server requires it or the URL begins with `tls://`, with the
/// authorities of the system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whether a server without TLS is refused.
    pub required: bool,
    /// PEM file of the authorities that the server's certificate is verified with, instead of those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the client's certificate chain and of its private key.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl Auth {
    /// Checks that an NKey or credentials can be used. The error has no part of them.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] says what is expected.
    pub fn check(&self) -> Result<()> {
        let invalid = |reason: &str| Err(Error::new(ErrorKind::Invalid, reason));
        match self {
            Self::NKey(seed) => match KeyPair::from_seed(seed) {
                Ok(pair) if pair.key_pair_type() == KeyPairType::User => Ok(()),
                _ => invalid("must be the seed of an NKey of a user, SU…, such as from `nk -gen user`"),
            },
            Self::Credentials(_) if self.apply(ConnectOptions::new()).is_err() => invalid(
                "must be the content of a credentials file: the JWT of a user and the seed of its NKey",
            ),
            _ => Ok(()),
        }
    }

    /// Adds the credentials to the options of a connection.
    pub(crate) fn apply(&self, options: ConnectOptions) -> Result<ConnectOptions> {
        Ok(match self.clone() {
            Self::Urls => options,
            Self::Password { user, password } => options.user_and_password(user, password),
            Self::Token(token) => options.token(token),
            Self::NKey(seed) => options.nkey(seed),
            Self::Credentials(text) => options.credentials(&text).map_err(|error| {
                Error::new(
                    ErrorKind::Invalid,
                    format!("the credentials can't be read: {error}"),
                )
            })?,
        })
    }
}

impl Tls {
    pub(crate) fn apply(&self, mut options: ConnectOptions) -> ConnectOptions {
        if self.required {
            options = options.require_tls(true);
        }
        if let Some(file) = &self.ca_file {
            options = options.add_root_certificates(file.clone());
        }
        if let Some((certificate, key)) = &self.client {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        options
    }
}

/// Separates the credentials in URLs from the addresses: `user:password@` or `token@`. The client library ignores them in
/// URLs.
///
/// # Errors
/// [`ErrorKind::Invalid`] when the URLs have different credentials.
pub(crate) fn take_credentials(servers: Vec<ServerAddr>) -> Result<(Vec<ServerAddr>, Auth)> {
    let mut found = Auth::Urls;
    let mut addresses = Vec::with_capacity(servers.len());
    for server in servers {
        let auth = match (server.username(), server.password()) {
            (Some(user), Some(password)) => Auth::Password {
                user: decode(user)?,
                password: decode(password)?,
            },
            (Some(token), None) => Auth::Token(decode(token)?),
            (None, _) => Auth::Urls,
        };
        if auth != Auth::Urls && found != Auth::Urls && auth != found {
            return Err(Error::new(
                ErrorKind::Invalid,
                "urls: the servers of one cluster must have the same user name and password",
            ));
        }
        if auth != Auth::Urls {
            found = auth;
        }
        let mut url = server.into_inner();
        // Fails only for URLs without a host, which have no credentials.
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        let address = ServerAddr::from_url(url)
            .map_err(|error| Error::new(ErrorKind::Invalid, format!("urls: {error}")))?;
        addresses.push(address);
    }
    Ok((addresses, found))
}

fn decode(text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded
        .map(Into::into)
        .map_err(|_| Error::new(ErrorKind::Invalid, "urls: the user name or password is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(urls: &[&str]) -> Result<(Vec<ServerAddr>, Auth)> {
        take_credentials(urls.iter().map(|url| url.parse().unwrap()).collect())
    }

    #[test]
    fn credentials_are_taken_out_of_the_urls() {
        let (servers, auth) = take(&["nats://me:p%40ss@one:4222", "nats://two"]).unwrap();
        assert_eq!(servers[0].as_url_str(), "nats://one:4222");
        assert_eq!(
            auth,
            Auth::Password {
                user: "me".into(),
                password: "p@ss".into()
            }
        );
        assert_eq!(take(&["nats://abc@one"]).unwrap().1, Auth::Token("abc".into()));
        assert_eq!(take(&["nats://one"]).unwrap().1, Auth::Urls);
    }

    #[test]
    fn different_credentials_are_refused() {
        let error = take(&["nats://a:b@one", "nats://c:d@two"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(!error.to_string().contains("c:d"));
    }

    #[test]
    fn what_is_no_seed_and_what_is_no_credentials_are_refused_and_not_repeated() {
        let user = KeyPair::new_user();
        let seed = user.seed().unwrap();
        let credentials = format!(
            "-----BEGIN NATS USER JWT-----\ne30.e30.e30\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        for good in [
            Auth::Urls,
            Auth::Token("abc".into()),
            Auth::NKey(seed.clone()),
            Auth::Credentials(credentials.clone()),
        ] {
            assert!(good.check().is_ok(), "{good:?}");
        }
        for bad in [
            Auth::NKey("hunter2".into()),
            Auth::NKey(KeyPair::new_account().seed().unwrap()),
            Auth::Credentials("hunter2".into()),
            Auth::Credentials(credentials.replace(&seed, "hunter2")),
        ] {
            let error = bad.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let auth = Auth::Password {
            user: "me".into(),
            password: "hunter2".into(),
        };
        assert_eq!(format!("{auth:?}"), "Password");
    }
}
