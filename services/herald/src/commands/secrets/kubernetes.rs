//! The Secrets of a namespace, through the API server. Three requests are all that is needed, so this uses the HTTP
//! client that the push service has anyway, and not the `kube` crate with its models of the whole API.

use std::{
    collections::BTreeMap,
    error::Error as _,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use herald_runtime::config::SecretUrl;
use reqwest::{Certificate, Method, StatusCode, Url, header, redirect};
use serde::Deserialize;
use serde_json::{Value, json};

/// Where a pod finds the credentials of its service account.
pub(super) const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Timeout of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// An API server and the credentials for it.
#[derive(Debug)]
pub(super) struct Access {
    url: Url,
    /// File of the token, which is replaced while it is used; `None` without credentials.
    token: Option<PathBuf>,
    /// PEM file of the server's authorities.
    ca: Option<PathBuf>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No answer, or one that says to come again: a retry can help.
    #[error("the API server of Kubernetes {0}")]
    Away(String),
    /// The Secret was created, changed or removed since it was read.
    #[error("secret {0} was changed at the same time")]
    Conflict(String),
    /// The service account lacks a right.
    #[error(
        "this service account may not {verb} secret {name} in namespace {namespace} (403): its Role must allow the verb \
         `{verb}` on the resource `secrets`; the API server says: {message}"
    )]
    Forbidden {
        verb: &'static str,
        name: String,
        namespace: String,
        message: String,
    },
    /// Any other refusal.
    #[error("{0}")]
    Refused(String),
}

/// A Secret as the server has it.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) version: String,
    pub(super) data: BTreeMap<String, Vec<u8>>,
}

/// The Secrets of a namespace.
pub(super) struct Api {
    http: reqwest::Client,
    access: Access,
    namespace: String,
}

impl Access {
    /// The API server of the cluster in which this pod runs.
    pub(super) fn of_pod(service_account: &Path) -> Result<Self, String> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (Some(host), Some(port)) = (
            variable("KUBERNETES_SERVICE_HOST"),
            variable("KUBERNETES_SERVICE_PORT"),
        ) else {
            return Err(
                "KUBERNETES_SERVICE_HOST is not set, so this is no pod of Kubernetes: name the API server with \
                 --api-server"
                    .into(),
            );
        };
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        Self::at(&format!("https://{host}:{port}"), service_account)
    }

    /// An API server with the credentials of a service account; without them, if its scheme is http.
    pub(super) fn at(url: &str, service_account: &Path) -> Result<Self, String> {
        let invalid = |reason: &dyn std::fmt::Display| {
            format!("--api-server {:?}: {reason}", SecretUrl::new(url).redacted())
        };
        let parsed: Url = url.parse().map_err(|error| invalid(&error))?;
        let is_local = ["127.0.0.1", "[::1]", "localhost"].contains(&parsed.host_str().unwrap_or_default());
        match parsed.scheme() {
            "https" => Ok(Self {
                url: parsed,
                token: Some(service_account.join("token")),
                ca: Some(service_account.join("ca.crt")),
            }),
            "http" if is_local => Ok(Self {
                url: parsed,
                token: None,
                ca: None,
            }),
            _ => Err(invalid(&"must be https://, or http:// on this machine")),
        }
    }
}

impl Api {
    pub(super) fn new(access: Access, namespace: &str) -> Result<Self, Error> {
        // Fails if the process has already installed a provider; any provider works.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let refused = |what: &str, error: &dyn std::fmt::Display| Error::Refused(format!("{what}: {error}"));
        let mut authorities = Vec::new();
        if let Some(path) = &access.ca {
            let what = path.display().to_string();
            let pem = std::fs::read(path).map_err(|error| refused(&what, &error))?;
            authorities = Certificate::from_pem_bundle(&pem).map_err(|error| refused(&what, &error))?;
        }
        let http = reqwest::Client::builder()
            .user_agent(concat!("herald/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .no_proxy()
            .timeout(REQUEST_TIMEOUT)
            .tls_certs_only(authorities)
            .build()
            .map_err(|error| refused("HTTP client", &error))?;
        Ok(Self {
            http,
            access,
            namespace: namespace.to_owned(),
        })
    }

    /// Reads a Secret; `None` if it doesn't exist.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Stored>, Error> {
        match self.call("get", Method::GET, name, None).await? {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (_, body) => parse(name, &body).map(Some),
        }
    }

    /// Creates a Secret.
    pub(super) async fn create(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
        data: &BTreeMap<String, String>,
    ) -> Result<Stored, Error> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": name, "labels": labels, "annotations": annotations},
            "data": encode(data),
        });
        match self.call("create", Method::POST, name, Some(&secret)).await? {
            (StatusCode::NOT_FOUND, _) => Err(Error::Refused(format!(
                "namespace {} does not exist, so secret {name} can't be created in it",
                self.namespace
            ))),
            (_, body) => parse(name, &body),
        }
    }

    /// Sets keys of a Secret, if nobody has changed it since this version.
    pub(super) async fn patch(
        &self,
        name: &str,
        version: &str,
        data: &BTreeMap<String, String>,
    ) -> Result<Stored, Error> {
        let patch = json!({"metadata": {"resourceVersion": version}, "data": encode(data)});
        match self.call("patch", Method::PATCH, name, Some(&patch)).await? {
            // It was removed.
            (StatusCode::NOT_FOUND, _) => Err(Error::Conflict(name.to_owned())),
            (_, body) => parse(name, &body),
        }
    }

    /// Sends a request. Returns the body of a success or of a 404.
    async fn call(
        &self,
        verb: &'static str,
        method: Method,
        name: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Vec<u8>), Error> {
        let mut url = self.access.url.clone();
        let mut path = format!("/api/v1/namespaces/{}/secrets", self.namespace);
        if method != Method::POST {
            path = format!("{path}/{name}");
        }
        url.set_path(&path);
        let content = if method == Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let mut request = self
            .http
            .request(method, url)
            .header(header::ACCEPT, "application/json");
        if let Some(token) = &self.access.token {
            let text = std::fs::read_to_string(token)
                .map_err(|error| Error::Refused(format!("{}: {error}", token.display())))?;
            request = request.bearer_auth(text.trim());
        }
        if let Some(body) = body {
            request = request
                .header(header::CONTENT_TYPE, content)
                .body(body.to_string());
        }
        let answer = async {
            let response = request.send().await?;
            let status = response.status();
            Ok((status, response.bytes().await?))
        };
        let (status, body) = answer
            .await
            .map_err(|error: reqwest::Error| Error::Away(no_answer(&error)))?;
        let message = || message(&body);
        let name = name.to_owned();
        match status {
            _ if status.is_success() || status == StatusCode::NOT_FOUND => Ok((status, body.into())),
            StatusCode::CONFLICT => Err(Error::Conflict(name)),
            StatusCode::FORBIDDEN => Err(Error::Forbidden {
                verb,
                name,
                namespace: self.namespace.clone(),
                message: message(),
            }),
            StatusCode::UNAUTHORIZED => Err(Error::Refused(format!(
                "the API server of Kubernetes does not accept the token of the service account (401): {}",
                message()
            ))),
            _ if status.is_server_error()
                || status == StatusCode::TOO_MANY_REQUESTS
                || status == StatusCode::REQUEST_TIMEOUT =>
            {
                Err(Error::Away(format!("answers {status}: {}", message())))
            }
            _ => Err(Error::Refused(format!(
                "the API server of Kubernetes refuses to {verb} secret {name} ({status}): {}",
                message()
            ))),
        }
    }
}

/// Why there is no answer, with the innermost cause.
fn no_answer(error: &reqwest::Error) -> String {
    let mut cause = String::new();
    let mut source = error.source();
    while let Some(inner) = source {
        cause = format!(": {inner}");
        source = inner.source();
    }
    if error.is_timeout() {
        format!("gives no answer within {} s", REQUEST_TIMEOUT.as_secs())
    } else {
        format!("can't be reached{cause}")
    }
}

fn encode(data: &BTreeMap<String, String>) -> BTreeMap<&str, String> {
    let entries = data.iter();
    entries
        .map(|(key, value)| (key.as_str(), BASE64_STANDARD.encode(value)))
        .collect()
}

fn parse(name: &str, body: &[u8]) -> Result<Stored, Error> {
    #[derive(Deserialize)]
    struct Secret {
        metadata: Metadata,
        #[serde(default)]
        data: BTreeMap<String, String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        resource_version: String,
    }
    let malformed = || Error::Refused(format!("the answer of the API server is no Secret {name}"));
    let secret: Secret = serde_json::from_slice(body).map_err(|_| malformed())?;
    let decoded = secret
        .data
        .into_iter()
        .map(|(key, value)| Some((key, BASE64_STANDARD.decode(value).ok()?)));
    Ok(Stored {
        version: secret.metadata.resource_version,
        data: decoded.collect::<Option<_>>().ok_or_else(malformed)?,
    })
}

/// The message of a `Status`, or the begin of any other body.
fn message(body: &[u8]) -> String {
    let status: Option<Value> = serde_json::from_slice(body).ok();
    let message = status.and_then(|status| Some(status.get("message")?.as_str()?.to_owned()));
    message.unwrap_or_else(|| String::from_utf8_lossy(body).chars().take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_sent_over_plain_http() {
        let dir = Path::new("/none");
        assert!(Access::at("https://10.0.0.1:443", dir).unwrap().token.is_some());
        assert!(Access::at("http://127.0.0.1:8001", dir).unwrap().token.is_none());
        for url in ["http://10.0.0.1", "ftp://127.0.0.1", "api:6443"] {
            let error = Access::at(url, dir).unwrap_err();
            assert!(error.starts_with("--api-server"), "{error}");
        }
    }
}
