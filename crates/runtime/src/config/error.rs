//! What is wrong with the settings, and where.

use std::fmt;
use std::path::PathBuf;

use figment::error::{Actual, Kind};

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// The program.
    Defaults,
    /// The configuration file.
    File(PathBuf),
    /// The environment.
    Environment,
    /// The command line.
    Flags,
    /// All of them together: the settings don't fit their ranges or one another.
    All,
}

impl Layer {
    /// A key as this layer writes it.
    fn key(&self, key: &str) -> String {
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

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it was said.
    pub layer: Layer,
    /// The setting, dotted: `nats.url`; empty when it is the layer as a whole.
    pub key: String,
    /// What is wrong and what is expected. Never the value of a setting that could be a secret.
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
                self.layer.key(&self.key),
                self.layer,
                self.reason
            )
        }
    }
}

/// Settings that can't be used. There is at least one problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    problems: Vec<Problem>,
}

impl Error {
    /// What is wrong.
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
        for (at, problem) in self.problems.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Words for what went wrong with one value. A value of the wrong type is not shown: it could be a secret.
pub(super) fn reason(kind: &Kind) -> String {
    match kind {
        Kind::InvalidType(actual, expected) => format!("expected {expected}, found {}", type_of(actual)),
        Kind::InvalidValue(actual, expected) => format!("expected {expected}, found {actual}"),
        Kind::InvalidLength(length, expected) => format!("expected {expected}, found {length} elements"),
        Kind::UnknownVariant(name, known) => format!("expected one of {}, found {name:?}", known.join(", ")),
        Kind::UnknownField(_, known) => unknown(known),
        Kind::MissingField(_) => "must be set".into(),
        Kind::ISizeOutOfRange(value) => format!("{value} is out of range"),
        Kind::USizeOutOfRange(value) => format!("{value} is out of range"),
        other => other.to_string(),
    }
}

/// Words for a key that no setting has.
pub(super) fn unknown(known: &[impl AsRef<str>]) -> String {
    if known.is_empty() {
        return "there is no such setting".into();
    }
    let known: Vec<_> = known.iter().map(AsRef::as_ref).collect();
    format!("there is no such setting, expected one of {}", known.join(", "))
}

fn type_of(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "a boolean",
        Actual::Unsigned(_) | Actual::Signed(_) => "an integer",
        Actual::Float(_) => "a float",
        Actual::Char(_) | Actual::Str(_) => "a string",
        Actual::Bytes(_) => "bytes",
        Actual::Unit | Actual::Option => "nothing",
        Actual::Seq => "an array",
        Actual::Map => "a table",
        _ => "something else",
    }
}
