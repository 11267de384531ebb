//! Values of settings that are in files of their own.

use std::path::Path;

use figment::value::{Dict, Value};

/// Ending of a key that names the file with the value of a setting.
pub(super) const VALUE_FILE: &str = "_file";

/// The setting whose value is in the file that this key names; `None` if the key is a setting itself or unknown.
pub(super) fn setting_of_file(key: &str, defaults: &Value) -> Option<String> {
    let setting = key.strip_suffix(VALUE_FILE)?;
    let exists = |key| defaults.find_ref(key).filter(|value| value.as_dict().is_none());
    (defaults.find_ref(key).is_none() && exists(setting).is_some()).then(|| setting.to_owned())
}

/// Replaces each key that names the file of a setting by the setting. The error has the key and the reason.
pub(super) fn read_value_files(
    parent: &str,
    dict: &mut Dict,
    defaults: &Value,
) -> Result<(), (String, String)> {
    let path = |name: &str| match parent {
        "" => name.to_owned(),
        _ => format!("{parent}.{name}"),
    };
    for (name, value) in dict.iter_mut() {
        if let Value::Dict(_, inner) = value {
            read_value_files(&path(name), inner, defaults)?;
        }
    }
    let names: Vec<String> = dict.keys().cloned().collect();
    for name in names {
        let key = path(&name);
        let Some(setting) = setting_of_file(&key, defaults) else {
            continue;
        };
        let short = name.trim_end_matches(VALUE_FILE).to_owned();
        if dict.contains_key(&short) {
            return Err((key, is_set_too(&setting)));
        }
        let file = dict.remove(&name);
        let file = file.as_ref().and_then(Value::as_str).unwrap_or_default();
        match read_value(file) {
            Ok(text) => dict.insert(short, Value::from(text)),
            Err(reason) => return Err((key, reason)),
        };
    }
    Ok(())
}

/// The keys of a TOML file that name the files of settings, and these files; none if it can't be read.
pub(super) fn value_files_of(path: &Path, defaults: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if let Some(Value::Dict(_, table)) = read_table(path) {
        collect("", &table, defaults, &mut found);
    }
    found
}

fn collect(parent: &str, table: &Dict, defaults: &Value, found: &mut Vec<(String, String)>) {
    for (name, value) in table {
        let key = if parent.is_empty() {
            name.clone()
        } else {
            format!("{parent}.{name}")
        };
        match value {
            Value::Dict(_, inner) => collect(&key, inner, defaults, found),
            Value::String(_, file) if setting_of_file(&key, defaults).is_some() => {
                found.push((key, file.clone()));
            }
            _ => {}
        }
    }
}

/// The table of a TOML file.
pub(super) fn read_table(path: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(Value::from(toml::from_str::<Dict>(&text).ok()?))
}

/// The reason of an error: the setting and its file are both set.
pub(super) fn is_set_too(setting: &str) -> String {
    format!("must not be set together with {setting}")
}

/// Reads the value of a setting from its file.
pub(super) fn read_value(file: &str) -> Result<String, String> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => Err(format!("must name a file that can be read, is {file:?}: {error}")),
    }
}
