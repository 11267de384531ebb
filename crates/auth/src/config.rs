//! Configuration.

use std::path::PathBuf;

use herald_secret::{Secret, SecretUrl};
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::jwt;

/// Shortest and longest root key, bytes.
const ROOT_KEY_BYTES: std::ops::RangeInclusive<usize> = 32..=256;

/// Who may call the gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether the ports of the gateway need a credential: an API key, the root key or a token.
    pub enabled: bool,
    /// A key of all scopes, with the name `root`, to create the first API keys with; 32 to 256 visible characters of
    /// ASCII. Usually set as `root_key_file`. Empty: there is none.
    pub root_key: Secret,
    /// Tokens of an OIDC issuer (JWT).
    pub jwt: JwtConfig,
}

/// Which tokens (JWT) are accepted. All of `issuer`, `audience` and one of `jwks_url` and `jwks_file` must be set, or none:
/// then no token is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JwtConfig {
    /// The issuer: the claim `iss` of a token must equal it.
    pub issuer: String,
    /// The audience: the claim `aud` of a token must be or contain it.
    pub audience: String,
    /// URL of the issuer's keys (JWKS, RFC 7517), `https://…`; `http://` on loopback alone. They are read every 5 minutes,
    /// and when a token names an unknown key. While the issuer is away, those read last stay. Empty:
    /// not used.
    pub jwks_url: String,
    /// File with the issuer's keys (JWKS), instead of `jwks_url`. It is read as often.
    pub jwks_file: Option<PathBuf>,
    /// PEM file of certificate authorities that `jwks_url` is verified with, in addition to the system's. Refused
    /// without `https://` in `jwks_url`.
    pub ca_file: Option<PathBuf>,
    /// Accepted algorithms: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA; at least one.
    pub algorithms: Vec<Algorithm>,
    /// The claim that has the scopes: a string with blanks between them, or an array. Scopes that Herald doesn't have are
    /// ignored.
    pub scope_claim: String,
    /// The claim that has the user id, a string or an integer. A token without the scopes `operate` and `audit` acts for
    /// this user only.
    pub user_claim: String,
    /// Tolerated difference of the clocks of issuer and gateway, seconds; at most 60.
    pub leeway_seconds: u64,
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            audience: String::new(),
            jwks_url: String::new(),
            jwks_file: None,
            ca_file: None,
            algorithms: vec![Algorithm::RS256, Algorithm::ES256],
            scope_claim: "scope".into(),
            user_claim: "sub".into(),
            leeway_seconds: 30,
        }
    }
}

/// An algorithm of signatures (RFC 7518, RFC 8037). None of a shared secret (HMAC): every gateway could make tokens, and
/// a public key could pass for the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are those of the RFCs")]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    pub(crate) fn of_library(self) -> jsonwebtoken::Algorithm {
        use jsonwebtoken::Algorithm as Library;
        match self {
            Self::RS256 => Library::RS256,
            Self::RS384 => Library::RS384,
            Self::RS512 => Library::RS512,
            Self::PS256 => Library::PS256,
            Self::PS384 => Library::PS384,
            Self::PS512 => Library::PS512,
            Self::ES256 => Library::ES256,
            Self::ES384 => Library::ES384,
            Self::EdDsa => Library::EdDSA,
        }
    }
}

impl Config {
    /// Checks all values; the error names the first invalid key. Reads no file.
    pub fn validate(&self) -> Result<(), String> {
        let root_key = self.root_key.expose();
        let is_valid = root_key.is_empty()
            || (ROOT_KEY_BYTES.contains(&root_key.len())
                && root_key.bytes().all(|byte| byte.is_ascii_graphic()));
        if !is_valid {
            return Err("auth.root_key must be 32 to 256 visible characters of ASCII; make one with `openssl rand -hex 32`".into());
        }
        self.jwt.validate()
    }
}

impl Config {
    /// Checks the files that tokens are checked with. The error starts with the key of the setting.
    pub fn check_files(&self) -> Result<(), String> {
        for (key, file) in [("jwks_file", &self.jwt.jwks_file), ("ca_file", &self.jwt.ca_file)] {
            let Some(file) = file else { continue };
            let text = std::fs::read(file).map_err(|error| {
                format!(
                    "auth.jwt.{key} must name a file that can be read, is {}: {error}",
                    file.display()
                )
            })?;
            if key == "jwks_file" {
                jwt::check_keys(&text).map_err(|reason| {
                    format!(
                        "auth.jwt.jwks_file must name a file with the issuer's keys (JWKS), is {}: {reason}",
                        file.display()
                    )
                })?;
            }
        }
        Ok(())
    }
}

impl JwtConfig {
    /// Whether tokens are accepted.
    pub fn is_enabled(&self) -> bool {
        !self.issuer.is_empty()
    }

    fn validate(&self) -> Result<(), String> {
        if self.leeway_seconds > 60 {
            return Err(format!(
                "auth.jwt.leeway_seconds must be at most 60, is {}",
                self.leeway_seconds
            ));
        }
        if self.algorithms.is_empty() {
            return Err("auth.jwt.algorithms must have an algorithm".into());
        }
        if self.scope_claim.is_empty() || self.user_claim.is_empty() {
            return Err("auth.jwt.scope_claim and auth.jwt.user_claim must not be empty".into());
        }
        self.validate_source()?;
        let is_verified = Url::parse(&self.jwks_url).is_ok_and(|url| url.scheme() == "https");
        if self.ca_file.is_some() && !is_verified {
            return Err(
                "auth.jwt.ca_file must not be set without https:// in auth.jwt.jwks_url: it would verify nothing"
                    .into(),
            );
        }
        Ok(())
    }

    /// Checks where keys come from, and for whom tokens must be.
    fn validate_source(&self) -> Result<(), String> {
        let has_source = !self.jwks_url.is_empty() || self.jwks_file.is_some();
        if self.issuer.is_empty() && self.audience.is_empty() && !has_source {
            return Ok(());
        }
        if self.issuer.is_empty() || self.audience.is_empty() || !has_source {
            return Err(
                "auth.jwt.issuer, auth.jwt.audience and one of auth.jwt.jwks_url and auth.jwt.jwks_file must be set together"
                    .into(),
            );
        }
        if self.jwks_file.is_some() {
            return if self.jwks_url.is_empty() {
                Ok(())
            } else {
                Err("auth.jwt.jwks_url must not be set together with auth.jwt.jwks_file".into())
            };
        }
        let url = Url::parse(&self.jwks_url).ok();
        if let Some(url) = &url
            && (!url.username().is_empty() || url.password().is_some())
        {
            return Err(
                "auth.jwt.jwks_url must have no user and no password: an issuer's keys are public".into(),
            );
        }
        if url.is_some_and(|url| is_safe(&url)) {
            return Ok(());
        }
        Err(format!(
            "auth.jwt.jwks_url must be https://, or http:// on loopback, is {:?}: who can change the keys on the way can make \
             tokens",
            SecretUrl::new(&self.jwks_url).redacted()
        ))
    }
}

fn is_safe(url: &Url) -> bool {
    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_issuer() -> JwtConfig {
        JwtConfig {
            issuer: "https://id.example.org".into(),
            audience: "herald".into(),
            jwks_url: "https://id.example.org/keys".into(),
            ..JwtConfig::default()
        }
    }

    #[test]
    fn a_whole_configuration_is_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
        let config = Config {
            enabled: true,
            root_key: Secret::new("0123456789abcdef0123456789abcdef"),
            jwt: with_issuer(),
        };
        assert_eq!(config.validate(), Ok(()));
        assert!(config.jwt.is_enabled() && !Config::default().jwt.is_enabled());
    }

    #[test]
    fn an_invalid_value_is_named() {
        let refused = |config: Config, start: &str| {
            let error = config.validate().unwrap_err();
            assert!(error.starts_with(start), "{error}");
        };
        let of = |jwt| Config {
            jwt,
            ..Config::default()
        };
        for key in ["short", "0123456789abcdef 0123456789abcdef", &"k".repeat(257)] {
            let root_key = Secret::new(key);
            refused(
                Config {
                    root_key,
                    ..Config::default()
                },
                "auth.root_key must be",
            );
        }
        refused(
            of(JwtConfig {
                leeway_seconds: 61,
                ..with_issuer()
            }),
            "auth.jwt.leeway_seconds",
        );
        refused(
            of(JwtConfig {
                algorithms: Vec::new(),
                ..with_issuer()
            }),
            "auth.jwt.algorithms",
        );
        refused(
            of(JwtConfig {
                user_claim: String::new(),
                ..with_issuer()
            }),
            "auth.jwt.scope_claim",
        );
        refused(
            of(JwtConfig {
                audience: String::new(),
                ..with_issuer()
            }),
            "auth.jwt.issuer, auth.jwt.audience",
        );
        refused(
            of(JwtConfig {
                jwks_url: String::new(),
                ..with_issuer()
            }),
            "auth.jwt.issuer, auth.jwt.audience",
        );
        refused(
            of(JwtConfig {
                jwks_file: Some("f".into()),
                ..with_issuer()
            }),
            "auth.jwt.jwks_url must not be set",
        );
        for bad in [
            "http://id.example.org/keys",
            "http://127.0.0.1.example.org",
            "ftp://localhost/keys",
            "keys",
        ] {
            refused(
                of(JwtConfig {
                    jwks_url: bad.into(),
                    ..with_issuer()
                }),
                "auth.jwt.jwks_url must be https://",
            );
        }
        for (url, part) in [
            ("https://me:hunter2@id.example.org", "no user"),
            ("https://me:p#hunter2@id.example.org", "https://[hidden]"),
        ] {
            let error = of(JwtConfig {
                jwks_url: url.into(),
                ..with_issuer()
            })
            .validate()
            .unwrap_err();
            assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
        }
        for (url, file) in [("http://localhost/keys", None), ("", Some("keys.json".into()))] {
            refused(
                of(JwtConfig {
                    jwks_url: url.into(),
                    jwks_file: file,
                    ca_file: Some("ca.pem".into()),
                    ..with_issuer()
                }),
                "auth.jwt.ca_file must not be set without https://",
            );
        }
        let with_authorities = JwtConfig {
            ca_file: Some("ca.pem".into()),
            ..with_issuer()
        };
        assert_eq!(of(with_authorities).validate(), Ok(()));
        for good in ["http://localhost:80/k", "http://127.0.0.1/k", "http://[::1]:8/k"] {
            assert_eq!(
                of(JwtConfig {
                    jwks_url: good.into(),
                    ..with_issuer()
                })
                .validate(),
                Ok(())
            );
        }
    }

    #[test]
    fn algorithms_of_a_shared_secret_are_unknown() {
        for name in ["HS256", "none"] {
            serde_json::from_value::<Algorithm>(name.into()).unwrap_err();
        }
        assert_eq!(
            serde_json::from_value::<Algorithm>("EdDSA".into()).unwrap(),
            Algorithm::EdDsa
        );
    }

    #[test]
    fn a_file_without_keys_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.json");
        let config = Config {
            jwt: JwtConfig {
                jwks_url: String::new(),
                jwks_file: Some(file.clone()),
                ..with_issuer()
            },
            ..Config::default()
        };
        for text in ["junk", "{\"keys\":[]}", "{}"] {
            std::fs::write(&file, text).unwrap();
            let error = config.check_files().unwrap_err();
            assert!(
                error.starts_with("auth.jwt.jwks_file must name a file with the issuer's keys (JWKS), is "),
                "{error}"
            );
        }
        std::fs::remove_file(&file).unwrap();
        let error = config.check_files().unwrap_err();
        assert!(
            error.starts_with("auth.jwt.jwks_file must name a file that can be read"),
            "{error}"
        );
    }
}
