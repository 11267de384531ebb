//! Configuration errors, each with its layer and key.

use std::fmt;
use std::path::PathBuf;

use figment::error::Kind;

use super::expected;

/// The layer that set a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// The built-in defaults.
    Defaults,
    /// The configuration file.
    File(PathBuf),
    /// The environment variables.
    Environment,
    /// The command-line flags.
    Flags,
    /// The merged settings: a value is out of bounds or contradicts another one.
    All,
}

impl Layer {
    /// A key in the notation of this layer.
    fn format_key(&self, key: &str) -> String {
        match self {
            Self::Environment => format!("HERALD_{}", key.to_uppercase().replace('.', "__")),
            _ => key.to_owned(),
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Defaults => f.write_str("the defaults"),
            Self::File(path) => path.display().fmt(f),
            Self::Environment => f.write_str("the environment"),
            Self::Flags => f.write_str("the flags"),
            Self::All => f.write_str("the settings"),
        }
    }
}

/// One configuration error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The layer that caused it.
    pub layer: Layer,
    /// The dotted key such as `nats.url`; empty if the error concerns the whole layer.
    pub key: String,
    /// What is wrong and what is expected. Never contains a value that could be a secret.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.layer, self.reason)
        } else {
            write!(
                f,
                "{} in {}: {}",
                self.layer.format_key(&self.key),
                self.layer,
                self.reason
            )
        }
    }
}

/// One or more configuration errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    problems: Vec<Problem>,
}

impl Error {
    /// The errors; never empty.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    pub(super) fn one(layer: Layer, key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            problems: vec![Problem {
                layer,
                key: key.into(),
                reason: reason.into(),
            }],
        }
    }

    pub(super) fn many(problems: Vec<Problem>) -> Self {
        Self { problems }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Describes an invalid value: what is expected, in words, and what was found. `text`: the value if it is one.
pub(super) fn describe(kind: &Kind, text: Option<&str>) -> String {
    match kind {
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            expected::describe(actual, expected)
        }
        Kind::InvalidLength(length, expected) => expected::describe_length(*length, expected),
        Kind::UnknownVariant(name, known) => format!("must be one of {}, is {name:?}", known.join(", ")),
        Kind::UnknownField(_, known) => describe_unknown_key(known),
        Kind::MissingField(_) => "must be set".into(),
        Kind::ISizeOutOfRange(value) => format!("is out of range: {value}"),
        Kind::USizeOutOfRange(value) => format!("is out of range: {value}"),
        Kind::Message(message) => expected::describe_parse_error(message, text),
        other => other.to_string(),
    }
}

/// Describes an unknown key, given the keys of its table.
pub(super) fn describe_unknown_key(known: &[impl AsRef<str>]) -> String {
    if known.is_empty() {
        return "unknown setting".into();
    }
    let known: Vec<_> = known.iter().map(AsRef::as_ref).collect();
    format!("unknown setting, expected one of {}", known.join(", "))
}

/// What to do about an unknown key of a layer.
pub(super) fn unknown_key_hint(layer: &Layer) -> &'static str {
    match layer {
        Layer::Environment => {
            "; every variable that begins with HERALD_ is taken for a setting: unset it, or rename it if it is meant for \
             another program"
        }
        _ => "",
    }
}
