//! Environment variables that are settings.

use std::borrow::Cow;

use figment::value::Value;

/// Prefix of the environment variables.
pub(super) const PREFIX: &str = "HERALD_";

/// One environment variable.
pub(super) struct Variable<'a> {
    pub(super) key: String,
    pub(super) text: Cow<'a, str>,
    /// Whether to take the text as a string without parsing it.
    pub(super) verbatim: bool,
}

impl Variable<'_> {
    pub(super) fn value(&self) -> Value {
        if self.verbatim {
            return Value::from(self.text.as_ref());
        }
        match self.text.parse() {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }
}

/// The dotted key of a variable.
pub(super) fn key_of(name: &str) -> String {
    name.strip_prefix(PREFIX)
        .unwrap_or(name)
        .to_lowercase()
        .replace("__", ".")
}

/// Whether Kubernetes set a variable: it sets the addresses of each service, also of those named `herald…`, in every
/// pod of the namespace.
pub(super) fn is_kubernetes_service_variable(name: &str, value: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.contains("_PORT_")
            && ["_TCP", "_UDP", "_SCTP"]
                .iter()
                .any(|protocol| name.contains(protocol)))
        || (name.ends_with("_PORT") && value.contains("://"))
}
