//! The configuration of the NATS server, and of the access to it.

use std::{path::PathBuf, time::Duration};

use herald_mesh::{Auth, NatsUser, Tls, TopologyConfig, TopologyMode};
use herald_runtime::config::{Secret, SecretUrl};
use serde::{Deserialize, Serialize};

/// The NATS server: an external one, or a child process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Nats {
    /// URL of an external server with JetStream, `nats://HOST:PORT` or `tls://HOST:PORT`; commas separate the servers of
    /// a cluster. Credentials in it must come from a file or the environment. Empty: Herald starts nats-server as a child
    /// process.
    pub(crate) url: SecretUrl,
    /// User name, with `password`.
    pub(crate) user: String,
    /// Password of `user`.
    pub(crate) password: Secret,
    /// Token.
    pub(crate) token: Secret,
    /// Seed of an NKey, `SU…`.
    pub(crate) nkey_seed: Secret,
    /// Content of a credentials file: a user JWT and its seed. Usually set as `credentials_file`.
    pub(crate) credentials: Secret,
    /// Prefix of the subjects on which this process receives answers and messages. Empty: `_INBOX_` and the role, for a
    /// process with one role, so that the server can keep other roles from reading them; otherwise `_INBOX`.
    pub(crate) inbox_prefix: String,
    /// Whether the process makes streams and consumers: `apply` creates missing ones and updates those that differ,
    /// `verify` changes nothing and waits, not ready, until `herald topology apply` or someone else has made them.
    pub(crate) topology: TopologyMode,
    /// TLS to an external server.
    pub(crate) tls: NatsTls,
    /// Port of the child process; 0 picks a free port.
    pub(crate) port: u16,
    /// Path of the nats-server program. Unset: `$NATS_SERVER`, the PATH, the cache; else Herald downloads it.
    pub(crate) program: Option<PathBuf>,
    /// Whether the child process syncs each message to disk (fsync) before it acknowledges the message. If `false`, a
    /// power failure can lose messages of the last two minutes; a crash of the process loses nothing.
    pub(crate) sync_always: bool,
}

/// TLS to an external NATS server. It is used when the server requires it, when the URL begins with `tls://`, and
/// always with one of these settings.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NatsTls {
    /// Whether a server without TLS is refused. It always is with one of the files.
    pub(crate) required: bool,
    /// PEM file of the authorities that the server's certificate is verified with. Unset: those of the system.
    pub(crate) ca_file: Option<PathBuf>,
    /// PEM file of the client's certificate chain, with `key_file`.
    pub(crate) cert_file: Option<PathBuf>,
    /// PEM file of the private key of the client's certificate.
    pub(crate) key_file: Option<PathBuf>,
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            url: SecretUrl::default(),
            user: String::new(),
            password: Secret::default(),
            token: Secret::default(),
            nkey_seed: Secret::default(),
            credentials: Secret::default(),
            inbox_prefix: String::new(),
            topology: TopologyMode::default(),
            tls: NatsTls::default(),
            port: 4222,
            program: None,
            sync_always: false,
        }
    }
}

impl Nats {
    /// Whether the server is a child process.
    pub(crate) fn is_child(&self) -> bool {
        self.url.is_empty()
    }

    /// The configuration of connections to the servers of a URL; commas separate the servers of a cluster. The error
    /// starts with the key of an invalid setting. `users`: whose work the process does.
    pub(super) fn mesh_config(
        &self,
        url: &str,
        topology: &TopologyConfig,
        users: &[NatsUser],
    ) -> Result<herald_mesh::Config, String> {
        for server in url.split(',') {
            SecretUrl::new(server.trim())
                .check()
                .map_err(|reason| format!("nats.url {reason}"))?;
        }
        let inbox_prefix = match users {
            _ if !self.inbox_prefix.is_empty() => self.inbox_prefix.clone(),
            [user] => user.inbox_prefix(),
            _ => "_INBOX".into(),
        };
        let config = herald_mesh::Config {
            urls: url.split(',').map(|url| url.trim().into()).collect(),
            inbox_prefix,
            topology: self.topology,
            auth: self.auth()?,
            tls: self.tls()?,
            ..herald_mesh::Config::default()
        }
        .fit_dedupe_window(Duration::from_secs(topology.dedupe_window_seconds));
        match config.validate() {
            Ok(()) => Ok(config),
            Err(error) if error.to_string().starts_with("inbox_prefix") => Err(format!("nats.{error}")),
            Err(error) => Err(format!("nats.url must be nats://HOST:PORT: {error}")),
        }
    }

    /// The credentials; at most one kind.
    fn auth(&self) -> Result<Auth, String> {
        let set = [
            ("user", self.user.is_empty()),
            ("token", self.token.is_empty()),
            ("nkey_seed", self.nkey_seed.is_empty()),
            ("credentials", self.credentials.is_empty()),
        ];
        let set: Vec<&str> = set
            .into_iter()
            .filter(|(_, is_empty)| !is_empty)
            .map(|(name, _)| name)
            .collect();
        if let [first, second, ..] = set.as_slice() {
            return Err(format!(
                "nats.{second} must not be set together with nats.{first}: a connection has one kind of credentials"
            ));
        }
        if self.user.is_empty() && !self.password.is_empty() {
            return Err("nats.user must be set, because nats.password is".into());
        }
        let expose = |secret: &Secret| secret.expose().trim().to_owned();
        Ok(match set.first() {
            Some(&"user") => Auth::Password {
                user: self.user.clone(),
                password: self.password.expose().to_owned(),
            },
            Some(&"token") => Auth::Token(expose(&self.token)),
            Some(&"nkey_seed") => Auth::NKey(expose(&self.nkey_seed)),
            Some(_) => Auth::Credentials(self.credentials.expose().to_owned()),
            None => Auth::Urls,
        })
    }

    fn tls(&self) -> Result<Tls, String> {
        let client = match (&self.tls.cert_file, &self.tls.key_file) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) => {
                return Err("nats.tls.key_file must be set, because nats.tls.cert_file is".into());
            }
            (None, Some(_)) => {
                return Err("nats.tls.cert_file must be set, because nats.tls.key_file is".into());
            }
        };
        // TLS files are for a connection with TLS. Without this, a server that offers none would get plain text.
        let has_files = self.tls.ca_file.is_some() || client.is_some();
        Ok(Tls {
            required: self.tls.required || has_files,
            ca_file: self.tls.ca_file.clone(),
            client,
        })
    }

    /// Refuses TLS for the child process, which has none.
    pub(super) fn validate_child(&self) -> Result<(), String> {
        let tls = &self.tls;
        for (key, is_set) in [
            ("required", tls.required),
            ("ca_file", tls.ca_file.is_some()),
            ("cert_file", tls.cert_file.is_some()),
            ("key_file", tls.key_file.is_some()),
        ] {
            if is_set {
                return Err(format!(
                    "nats.tls.{key} must not be set without nats.url: the nats-server that Herald starts is called on \
                     loopback, without TLS"
                ));
            }
        }
        Ok(())
    }

    /// Checks the credentials, and that the files of TLS can be read. The error starts with the key of the invalid
    /// setting.
    pub(super) fn validate_files(&self) -> Result<(), String> {
        let auth = self.auth()?;
        let key = match &auth {
            Auth::NKey(_) => "nkey_seed",
            _ => "credentials",
        };
        auth.check().map_err(|error| format!("nats.{key} {error}"))?;
        for (key, file) in [
            ("ca_file", &self.tls.ca_file),
            ("cert_file", &self.tls.cert_file),
            ("key_file", &self.tls.key_file),
        ] {
            if let Some(file) = file
                && let Err(error) = std::fs::File::open(file)
            {
                return Err(format!(
                    "nats.tls.{key} can't be read: {}: {error}",
                    file.display()
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(change: impl FnOnce(&mut Nats)) -> Result<Auth, String> {
        let mut nats = Nats::default();
        change(&mut nats);
        let config = nats.mesh_config("nats://host:4222", &TopologyConfig::default(), &[])?;
        Ok(config.auth)
    }

    #[test]
    fn a_process_with_one_role_has_its_own_inbox() {
        let prefix = |nats: &Nats, users: &[NatsUser]| {
            let config = nats.mesh_config("nats://host", &TopologyConfig::default(), users);
            config.map(|config| config.inbox_prefix)
        };
        let mut nats = Nats::default();
        assert_eq!(prefix(&nats, &[NatsUser::Push]), Ok("_INBOX_push".into()));
        assert_eq!(
            prefix(&nats, &[NatsUser::Push, NatsUser::Graph]),
            Ok("_INBOX".into())
        );
        nats.inbox_prefix = "_INBOX.herald".into();
        assert_eq!(prefix(&nats, &[NatsUser::Push]), Ok("_INBOX.herald".into()));
        nats.inbox_prefix = "_INBOX.>".into();
        let error = prefix(&nats, &[NatsUser::Push]).unwrap_err();
        assert!(error.starts_with("nats.inbox_prefix must be"), "{error}");
    }

    #[test]
    fn a_url_whose_password_is_not_percent_encoded_is_refused_without_it() {
        for url in [
            "nats://u:p#hunter2@host:4222",
            "nats://u:hunter2,x@host:4222",
            "nats://one:4222,nats://u:p/hunter2@two:4222",
            "nats//u:hunter2@host",
        ] {
            let refused = Nats::default().mesh_config(url, &TopologyConfig::default(), &[]);
            let error = refused.unwrap_err();
            assert!(
                error.starts_with("nats.url has a") && error.contains("%40"),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_file_of_tls_requires_tls() {
        let required = |change: fn(&mut Nats)| {
            let mut nats = Nats::default();
            change(&mut nats);
            let config = nats.mesh_config("nats://host:4222", &TopologyConfig::default(), &[]);
            config.unwrap().tls.required
        };
        assert!(!required(|_| ()));
        assert!(required(|nats| nats.tls.required = true));
        assert!(required(|nats| nats.tls.ca_file = Some("ca.pem".into())));
        assert!(required(|nats| {
            nats.tls.cert_file = Some("a.pem".into());
            nats.tls.key_file = Some("a.key".into());
        }));
        // The nats-server that Herald starts has no TLS.
        assert_eq!(Nats::default().validate_child(), Ok(()));
        let mut nats = Nats::default();
        nats.tls.ca_file = Some("ca.pem".into());
        let error = nats.validate_child().unwrap_err();
        assert!(
            error.starts_with("nats.tls.ca_file must not be set without nats.url"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_seed_and_what_is_no_credentials_are_refused() {
        let refused = |change: fn(&mut Nats)| {
            let mut nats = Nats::default();
            change(&mut nats);
            nats.validate_files().unwrap_err()
        };
        let seed = refused(|nats| nats.nkey_seed = Secret::new("hunter2"));
        assert!(seed.starts_with("nats.nkey_seed must be the seed"), "{seed}");
        let credentials = refused(|nats| nats.credentials = Secret::new("hunter2"));
        assert!(
            credentials.starts_with("nats.credentials must be the content"),
            "{credentials}"
        );
        assert_eq!(Nats::default().validate_files(), Ok(()));
    }

    #[test]
    fn a_connection_has_one_kind_of_credentials() {
        assert_eq!(auth(|_| ()), Ok(Auth::Urls));
        let password = auth(|nats| {
            nats.user = "me".into();
            nats.password = Secret::new("hunter2");
        });
        assert!(matches!(password, Ok(Auth::Password { .. })));
        assert_eq!(
            auth(|nats| nats.token = Secret::new("abc\n")),
            Ok(Auth::Token("abc".into()))
        );
        for (change, start) in [
            (
                (|nats: &mut Nats| {
                    nats.token = Secret::new("a");
                    nats.nkey_seed = Secret::new("b");
                }) as fn(&mut Nats),
                "nats.nkey_seed must not be set together with nats.token",
            ),
            (|nats| nats.password = Secret::new("a"), "nats.user must be set"),
            (
                |nats| nats.tls.cert_file = Some("cert.pem".into()),
                "nats.tls.key_file must be set",
            ),
        ] {
            let error = auth(change).unwrap_err();
            assert!(error.starts_with(start), "{error}");
        }
    }
}
