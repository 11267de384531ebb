//! Reads and merges the layers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::error::{Actual, Kind};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::error::{Error, Layer, Problem, describe, describe_unknown_key, unknown_key_hint};
use super::not_toml;
use super::value_files::{VALUE_FILE, is_set_too, read_table, read_value, read_value_files, setting_of_file};
use super::variables::{PREFIX, Variable, is_kubernetes_service_variable, key_of};

/// Variables with the prefix that the command line reads itself and that are not settings.
pub const RESERVED: [&str; 11] = [
    "HERALD_CA_FILE",
    "HERALD_CERT_FILE",
    "HERALD_CONFIG",
    "HERALD_KEY_FILE",
    "HERALD_LOG",
    "HERALD_OPERATOR_SERVER",
    "HERALD_OUTPUT",
    "HERALD_SERVER",
    "HERALD_TOKEN",
    "HERALD_TOKEN_FILE",
    "HERALD_TRACE_FILTER",
];

const DEFAULTS: &str = "defaults";
const FILE: &str = "file";
const ENVIRONMENT: &str = "environment";
const FLAGS: &str = "flags";

/// Settings given on the command line.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    values: Vec<(String, Result<Value, String>)>,
}

impl Flags {
    /// Creates an empty set of flags.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a dotted key; `None` if the flag was not given.
    #[must_use]
    pub fn set(mut self, key: &str, value: Option<impl Serialize>) -> Self {
        if let Some(value) = value {
            let value = herald_secret::with_secrets_exposed(|| {
                Value::serialize(value).map_err(|error| error.to_string())
            });
            self.values.push((key.to_owned(), value));
        }
        self
    }
}

/// Loads settings from their layers; see the [module](super).
#[derive(Debug, Clone, Default)]
pub struct Loader {
    pub(super) file: Option<PathBuf>,
    pub(super) env: BTreeMap<String, String>,
    not_utf8: Vec<String>,
    pub(super) reserved: Vec<String>,
    flags: Flags,
}

impl Loader {
    /// Loads the defaults and the environment of the process without the [`RESERVED`] variables.
    pub fn new() -> Self {
        let mut loader = Self::defaults();
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => loader.add_env(name, value),
                Err(_) if name.starts_with(PREFIX) => loader.not_utf8.push(name),
                Err(_) => {}
            }
        }
        loader
    }

    /// Loads only the defaults.
    pub fn defaults() -> Self {
        Self {
            reserved: RESERVED.map(String::from).to_vec(),
            ..Self::default()
        }
    }

    /// Adds a TOML file, if given. [`load`](Self::load) fails if it does not exist.
    #[must_use]
    pub fn file(mut self, file: Option<&Path>) -> Self {
        self.file = file.map(Path::to_owned);
        self
    }

    /// Adds environment variables.
    #[must_use]
    pub fn env<N: Into<String>, V: Into<String>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        for (name, value) in variables {
            self.add_env(name.into(), value.into());
        }
        self
    }

    /// Ignores one more environment variable.
    #[must_use]
    pub fn reserve(mut self, name: impl Into<String>) -> Self {
        self.reserved.push(name.into());
        self
    }

    /// Adds flags.
    #[must_use]
    pub fn flags(mut self, flags: Flags) -> Self {
        self.flags.values.extend(flags.values);
        self
    }

    /// Adds one flag; `None` if it was not given.
    #[must_use]
    pub fn flag(mut self, key: &str, value: Option<impl Serialize>) -> Self {
        self.flags = self.flags.set(key, value);
        self
    }

    /// Reads and merges all layers.
    pub fn load<T>(&self) -> Result<T, Error>
    where
        T: Default + Serialize + DeserializeOwned,
    {
        Ok(self.load_merged()?.0)
    }

    /// Reads and merges all layers, then validates the settings.
    ///
    /// An error of `validate` that starts with the key of a setting is reported with the layer that set it, and without
    /// the key; every other error with [`Layer::All`].
    pub fn load_valid<T>(&self, validate: impl FnOnce(&T) -> Result<(), String>) -> Result<T, Error>
    where
        T: Default + Serialize + DeserializeOwned,
    {
        let (config, figment) = self.load_merged()?;
        match validate(&config) {
            Ok(()) => Ok(config),
            Err(reason) => Err(self.locate(&figment, reason)),
        }
    }

    /// The settings, and the merged layers with the origin of each value.
    fn load_merged<T>(&self) -> Result<(T, Figment), Error>
    where
        T: Default + Serialize + DeserializeOwned,
    {
        let defaults = herald_secret::with_secrets_exposed(|| {
            Value::serialize(T::default()).map_err(|error| Error::one(Layer::Defaults, "", error.to_string()))
        })?;
        let figment = self.merge_defaults_and_file(&defaults)?;
        let flags = self.flag_values()?;
        let mut variables = self.parse_variables(&defaults)?;
        // A variable that looks like a number, a boolean or an array is parsed as one. If the setting is a string, the
        // next iteration takes this variable verbatim.
        loop {
            let figment = figment
                .clone()
                .merge(NamedLayer(
                    ENVIRONMENT,
                    nest(variables.values().map(|v| (v.key.as_str(), v.value()))),
                ))
                .merge(NamedLayer(FLAGS, flags.clone()));
            match figment.extract::<Tracked<T>>() {
                Ok(tracked) => {
                    let mut problems = self.unknown_keys(&figment, &defaults, &tracked.ignored);
                    problems.extend(self.redacted_values(&figment));
                    return if problems.is_empty() {
                        Ok((tracked.value, figment))
                    } else {
                        Err(Error::many(problems))
                    };
                }
                Err(error) => {
                    let variable = error
                        .metadata
                        .as_ref()
                        .filter(|metadata| metadata.name == ENVIRONMENT && is_type_mismatch(&error.kind))
                        .and_then(|_| variables.get_mut(&error.path.join(".")))
                        .filter(|variable| !variable.verbatim);
                    match variable {
                        Some(variable) => variable.verbatim = true,
                        None => return Err(self.convert_error(&figment, &error)),
                    }
                }
            }
        }
    }

    fn add_env(&mut self, name: String, value: String) {
        if name.starts_with(PREFIX) && !is_kubernetes_service_variable(&name, &value) {
            self.env.insert(name, value);
        }
    }

    /// Merges the defaults and the file.
    fn merge_defaults_and_file(&self, defaults: &Value) -> Result<Figment, Error> {
        let settings = defaults
            .as_dict()
            .cloned()
            .ok_or_else(|| Error::one(Layer::Defaults, "", "the settings are not a table"))?;
        let figment = Figment::from(NamedLayer(DEFAULTS, settings));
        let Some(path) = &self.file else {
            return Ok(figment);
        };
        let layer = || Layer::File(path.clone());
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::one(layer(), "", format!("can't be read: {error}")))?;
        let mut dict: Dict = toml::from_str(&text)
            .map_err(|error| Error::one(layer(), "", not_toml::describe(&text, &error)))?;
        read_value_files("", &mut dict, defaults)
            .map_err(|(key, reason)| Error::one(layer(), key, reason))?;
        Ok(figment.merge(NamedLayer(FILE, dict)))
    }

    fn parse_variables(&self, defaults: &Value) -> Result<BTreeMap<String, Variable<'_>>, Error> {
        if let Some(name) = self.not_utf8.iter().find(|name| !self.reserved.contains(name)) {
            return Err(Error::one(Layer::Environment, key_of(name), "must be UTF-8"));
        }
        let variables = self.env.iter().filter(|(name, _)| !self.reserved.contains(name));
        let mut parsed = BTreeMap::new();
        for (name, text) in variables {
            let key = key_of(name);
            let failed = |reason| Error::one(Layer::Environment, key.clone(), reason);
            let variable = match setting_of_file(&key, defaults) {
                Some(setting) => {
                    if self.env.keys().any(|name| key_of(name) == setting) {
                        return Err(failed(is_set_too(&setting)));
                    }
                    Variable {
                        text: Cow::Owned(read_value(text).map_err(failed)?),
                        key: setting,
                        verbatim: true,
                    }
                }
                None => Variable {
                    key,
                    text: Cow::Borrowed(text.as_str()),
                    verbatim: false,
                },
            };
            parsed.insert(variable.key.clone(), variable);
        }
        Ok(parsed)
    }

    fn flag_values(&self) -> Result<Dict, Error> {
        let mut values = Vec::new();
        for (key, value) in &self.flags.values {
            match value {
                Ok(value) => values.push((key.as_str(), value.clone())),
                Err(reason) => return Err(Error::one(Layer::Flags, key, reason)),
            }
        }
        Ok(nest(values.into_iter()))
    }

    fn unknown_keys(&self, figment: &Figment, defaults: &Value, ignored: &[String]) -> Vec<Problem> {
        ignored
            .iter()
            .map(|key| {
                let parent = match key.rsplit_once('.') {
                    Some((parent, _)) => defaults.find_ref(parent),
                    None => Some(defaults),
                };
                let siblings: Vec<_> = parent
                    .and_then(Value::as_dict)
                    .map(|dict| dict.keys().collect())
                    .unwrap_or_default();
                let layer = self.layer(figment.find_metadata(key));
                Problem {
                    reason: format!("{}{}", describe_unknown_key(&siblings), unknown_key_hint(&layer)),
                    layer,
                    key: key.clone(),
                }
            })
            .collect()
    }

    /// The values that `print` wrote instead of a secret: a printed configuration was loaded.
    fn redacted_values(&self, figment: &Figment) -> Vec<Problem> {
        let mut keys = Vec::new();
        if let Ok(merged) = figment.extract::<Value>() {
            collect_redacted("", &merged, &mut keys);
        }
        keys.into_iter()
            .map(|key| {
                let reason =
                    "is the placeholder that a printed configuration has instead of a secret; set the secret itself";
                self.problem(self.layer(figment.find_metadata(&key)), key, reason.into())
            })
            .collect()
    }

    /// Attaches the layer to an error of a validation.
    fn locate(&self, figment: &Figment, reason: String) -> Error {
        let located = reason.split_once(' ').and_then(|(key, rest)| {
            let is_table = figment.find_value(key).ok()?.as_dict().is_some();
            let layer = if is_table {
                Layer::All
            } else {
                self.layer(figment.find_metadata(key))
            };
            Some(Error::many(vec![self.problem(
                layer,
                key.to_owned(),
                rest.to_owned(),
            )]))
        });
        located.unwrap_or_else(|| Error::one(Layer::All, "", reason))
    }

    fn convert_error(&self, figment: &Figment, error: &figment::Error) -> Error {
        let mut problems = Vec::new();
        for error in error.clone() {
            let mut path = error.path.clone();
            let name = match &error.kind {
                Kind::UnknownField(name, _) => Some(name.clone()),
                Kind::MissingField(name) => Some(name.to_string()),
                _ => None,
            };
            if let Some(name) = name
                && path.last() != Some(&name)
            {
                path.push(name);
            }
            let value = figment.find_value(&path.join(".")).ok();
            let mut reason = describe(&error.kind, value.as_ref().and_then(Value::as_str));
            // An element of a list is no setting.
            while let Some(index) = path.last().and_then(|name| name.parse::<usize>().ok()) {
                path.pop();
                reason = format!("element {} {reason}", index + 1);
            }
            let layer = self.layer(error.metadata.as_ref());
            if matches!(error.kind, Kind::UnknownField(..)) {
                reason.push_str(unknown_key_hint(&layer));
            }
            problems.push(self.problem(layer, path.join("."), reason));
        }
        Error::many(problems)
    }

    /// The problem of a setting. If its value is in a file of its own, the problem has the key that names the file.
    fn problem(&self, layer: Layer, key: String, reason: String) -> Problem {
        match self.value_file(&layer, &key) {
            Some((key, file)) => Problem {
                layer,
                key,
                reason: format!("the content of {file} {reason}"),
            },
            None => Problem { layer, key, reason },
        }
    }

    /// The key with which a layer names the file of a setting's value, and that file.
    fn value_file(&self, layer: &Layer, setting: &str) -> Option<(String, String)> {
        let key = format!("{setting}{VALUE_FILE}");
        let file = match layer {
            Layer::Environment => {
                let of = |key: &str| self.env.iter().find(|(name, _)| key_of(name) == key);
                let (_, file) = of(&key).filter(|_| of(setting).is_none())?;
                file.clone()
            }
            Layer::File(path) => read_table(path)?.find_ref(&key)?.as_str()?.to_owned(),
            Layer::Defaults | Layer::Flags | Layer::All => return None,
        };
        Some((key, file))
    }

    fn layer(&self, metadata: Option<&Metadata>) -> Layer {
        match (metadata.map(|metadata| metadata.name.as_ref()), &self.file) {
            (Some(FILE), Some(path)) => Layer::File(path.clone()),
            (Some(ENVIRONMENT), _) => Layer::Environment,
            (Some(FLAGS), _) => Layer::Flags,
            _ => Layer::Defaults,
        }
    }
}

/// A layer and its name.
struct NamedLayer(&'static str, Dict);

impl Provider for NamedLayer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0)
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.1.clone())]))
    }
}

/// Deserialised settings, and the keys that match none of them.
struct Tracked<T> {
    value: T,
    ignored: Vec<String>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Tracked<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut ignored = Vec::new();
        // `serde_ignored` adds a path segment `?` for each `Option`.
        let record = |path: serde_ignored::Path<'_>| ignored.push(path.to_string().replace(".?", ""));
        let value = serde_ignored::deserialize(deserializer, record)?;
        Ok(Self { value, ignored })
    }
}

/// Whether a value that is not a string has the wrong type, so that a string may be expected.
fn is_type_mismatch(kind: &Kind) -> bool {
    matches!(kind, Kind::InvalidType(actual, _) if !matches!(actual, Actual::Str(_)))
}

/// Collects the dotted keys of redacted values.
fn collect_redacted(key: &str, value: &Value, keys: &mut Vec<String>) {
    match value {
        Value::String(_, text) if herald_secret::is_placeholder(text) => keys.push(key.to_owned()),
        Value::Dict(_, fields) => {
            for (name, value) in fields {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                collect_redacted(&key, value, keys);
            }
        }
        _ => {}
    }
}

/// Builds nested tables from dotted keys. A later value replaces an earlier one of the same key.
fn nest<'a>(values: impl Iterator<Item = (&'a str, Value)>) -> Dict {
    let mut dict = Dict::new();
    for (key, value) in values {
        insert_nested(&mut dict, key, value);
    }
    dict
}

fn insert_nested(dict: &mut Dict, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            dict.insert(key.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = dict
                .entry(first.to_owned())
                .or_insert_with(|| Value::from(Dict::new()));
            if !matches!(inner, Value::Dict(..)) {
                *inner = Value::from(Dict::new());
            }
            if let Value::Dict(_, inner) = inner {
                insert_nested(inner, rest, value);
            }
        }
    }
}
