//! The specification of the Secrets.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// The Secrets of one namespace.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    pub(super) namespace: String,
    /// Labels of a Secret that is created.
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    /// Annotations of a Secret that is created.
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) secrets: Vec<Secret>,
}

/// One Secret.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Secret {
    pub(super) name: String,
    pub(super) entries: Vec<Entry>,
}

/// One key of a Secret.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) kind: Kind,
    /// The seed of an `nkey-public`.
    pub(super) of: Option<Reference>,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    Password,
    Vapid,
    StorageKey,
    Nkey,
    NkeyPublic,
}

/// A key of a Secret of the specification.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reference {
    pub(super) secret: String,
    pub(super) key: String,
}

impl Secret {
    /// Whether a value of it follows from another Secret.
    pub(super) fn follows(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == Kind::NkeyPublic)
    }
}

impl Spec {
    /// Parses and checks a specification. The error names what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let spec: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        spec.validate()?;
        Ok(spec)
    }

    fn validate(&self) -> Result<(), String> {
        if !is_name(&self.namespace) {
            return Err(format!(
                "namespace {:?} is not a name of Kubernetes",
                self.namespace
            ));
        }
        let mut seeds = BTreeSet::new();
        let mut keys = BTreeSet::new();
        for secret in &self.secrets {
            let name = &secret.name;
            if !is_name(name) {
                return Err(format!("secret {name:?} is not a name of Kubernetes"));
            }
            if secret.entries.is_empty() {
                return Err(format!("secret {name} has no entries"));
            }
            for entry in &secret.entries {
                let key = &entry.key;
                let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                if key.is_empty() || key.len() > 253 || !key.chars().all(allowed) {
                    return Err(format!("secret {name}: {key:?} is not a key of a Secret"));
                }
                if !keys.insert((name, key)) {
                    return Err(format!("secret {name}: key {key} is there twice"));
                }
                if entry.kind == Kind::Nkey {
                    seeds.insert((name, key));
                }
                if (entry.kind == Kind::NkeyPublic) != entry.of.is_some() {
                    return Err(format!(
                        "secret {name}: key {key}: an nkey-public, and nothing else, has `of`, the secret and key of its \
                         seed"
                    ));
                }
            }
        }
        let names: BTreeSet<_> = self.secrets.iter().map(|secret| &secret.name).collect();
        if names.len() < self.secrets.len() {
            return Err("a secret is there twice: give it all its entries at once".into());
        }
        for secret in &self.secrets {
            for of in secret.entries.iter().filter_map(|entry| entry.of.as_ref()) {
                if !seeds.contains(&(&of.secret, &of.key)) {
                    return Err(format!(
                        "secret {}: `of` names key {} of secret {}, which is no nkey of this specification",
                        secret.name, of.key, of.secret
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Whether this is a DNS subdomain, as names of Secrets and namespaces are.
fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let outer = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253 && name.chars().all(inner) && name.starts_with(outer) && name.ends_with(outer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(secrets: &str) -> String {
        Spec::parse(&format!(r#"{{"namespace":"herald","secrets":[{secrets}]}}"#)).unwrap_err()
    }

    #[test]
    fn a_wrong_specification_is_refused_with_what_is_wrong() {
        let password = r#"{"name":"a","entries":[{"key":"p","kind":"password"}]}"#;
        let public =
            r#"{"name":"b","entries":[{"key":"k","kind":"nkey-public","of":{"secret":"a","key":"p"}}]}"#;
        for (secrets, expected) in [
            (
                r#"{"name":"A","entries":[]}"#.to_owned(),
                "secret \"A\" is not a name",
            ),
            (
                r#"{"name":"a/b","entries":[]}"#.into(),
                "secret \"a/b\" is not a name",
            ),
            (r#"{"name":"a","entries":[]}"#.into(), "secret a has no entries"),
            (
                r#"{"name":"a","entries":[{"key":"x y","kind":"vapid"}]}"#.into(),
                "\"x y\" is not a key",
            ),
            (
                r#"{"name":"a","entries":[{"key":"x","kind":"tls"}]}"#.into(),
                "unknown variant `tls`",
            ),
            (
                r#"{"name":"a","entries":[{"key":"x","kind":"nkey-public"}]}"#.into(),
                "has `of`",
            ),
            (
                r#"{"name":"a","entries":[],"type":"x"}"#.into(),
                "unknown field `type`",
            ),
            (format!("{password},{password}"), "key p is there twice"),
            (
                format!("{password},{public}"),
                "which is no nkey of this specification",
            ),
        ] {
            let error = error(&secrets);
            assert!(error.contains(expected), "{secrets}: {error}");
        }
        let error = Spec::parse(r#"{"namespace":"","secrets":[]}"#).unwrap_err();
        assert!(error.contains("namespace \"\""), "{error}");
    }
}
