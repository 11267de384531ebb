//! Files with the values of settings that every user of the machine may read.

use std::path::Path;

use figment::value::Value;
use serde::Serialize;

use super::error::{Layer, Problem};
use super::loader::Loader;
use super::value_files::{setting_of_file, value_files_of};
use super::variables::key_of;
use crate::tls::is_open_to_others;

impl Loader {
    /// The files with the values of settings that every user of the machine may read.
    pub fn open_value_files<T: Default + Serialize>(&self) -> Vec<Problem> {
        let Ok(defaults) = Value::serialize(T::default()) else {
            return Vec::new();
        };
        let environment = self.env.iter().filter(|(name, _)| !self.reserved.contains(name));
        let environment = environment.filter_map(|(name, file)| {
            let key = key_of(name);
            setting_of_file(&key, &defaults).map(|_| (Layer::Environment, key, file.clone()))
        });
        let in_file = self.file.iter().flat_map(|path| {
            let files = value_files_of(path, &defaults).into_iter();
            files.map(|(key, file)| (Layer::File(path.clone()), key, file))
        });
        let open = in_file
            .chain(environment)
            .filter(|(_, _, file)| is_open_to_others(Path::new(file)));
        open.map(|(layer, key, file)| Problem {
            layer,
            key,
            reason: format!(
                "can be read by every user of this machine: {file}; let only the user of Herald read it"
            ),
        })
        .collect()
    }
}
