//! Checks of the configuration that read files, for a check without a start.

use std::path::Path;

use herald_runtime::telemetry::error_chain;

use crate::{
    Config, Error,
    adapters::{Client, check_vapid_key},
};

impl Config {
    /// Checks what the start of the service reads: the VAPID key and the certificate authorities. Creates no file. The
    /// error starts with the key of the invalid setting.
    pub fn check_files(&self, data_dir: &Path) -> Result<(), String> {
        let describe = |error: &Error, key| match error {
            Error::VapidKey => format!("{key} must be a P-256 private key, 32 bytes in base64url"),
            error => format!("{key} can't be used: {}", error_chain(error)),
        };
        check_vapid_key(self, data_dir).map_err(|error| {
            let key = if self.vapid_private_key.is_empty() {
                "push.vapid_key_file"
            } else {
                "push.vapid_private_key"
            };
            describe(&error, key)
        })?;
        Client::new(self)
            .map(drop)
            .map_err(|error| describe(&error, "push.ca_file"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use herald_runtime::config::Secret;

    use super::*;

    #[test]
    fn unusable_files_and_keys_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let check = |config: Config| config.check_files(dir.path());
        assert_eq!(check(Config::default()), Ok(()));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "a check creates no file"
        );

        let error = check(Config {
            vapid_private_key: Secret::new("nonsense"),
            ..Config::default()
        })
        .unwrap_err();
        assert!(error.starts_with("push.vapid_private_key must be"), "{error}");
        assert!(!error.contains("nonsense"), "{error}");

        let key = dir.path().join("key");
        fs::write(&key, "nonsense").unwrap();
        let error = check(Config {
            vapid_key_file: Some(key),
            ..Config::default()
        })
        .unwrap_err();
        assert!(error.starts_with("push.vapid_key_file must be"), "{error}");

        let missing = dir.path().join("ca.pem");
        let error = check(Config {
            ca_file: Some(missing.clone()),
            ..Config::default()
        })
        .unwrap_err();
        assert!(
            error.starts_with("push.ca_file can't be used") && error.contains(missing.to_str().unwrap()),
            "{error}"
        );
    }
}
