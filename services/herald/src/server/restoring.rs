//! Makes an installation of a backup.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use herald_recovery::Recovered;
use herald_runtime::config::Secret;

use super::{
    Config,
    backup::{FILES, Manifest, STORE, copy, is_empty, private},
    data_dir::{self, check_parent, is_in},
    recovering::Recovering,
    storage_key,
};

/// Restores a backup into the data directory of the configuration, or to the servers that it names. `key`: the storage key
/// that the data directory gets.
///
/// # Errors
/// The target can't take the backup, and nothing was changed; or the restore did not finish: then the data directory is
/// marked, and nothing starts on it.
pub(crate) async fn restore(
    config: &Config,
    dir: &Path,
    manifest: &Manifest,
    key: Option<&Secret>,
) -> Result<Recovered> {
    if config.store.is_cluster() {
        return restore_streams(config, dir, manifest).await;
    }
    let data_dir = &*config.data_dir;
    check_target(dir, data_dir)?;
    check_keys(config, manifest, key)?;
    data_dir::create_private_files();
    if !data_dir.exists() {
        let made = DirBuilder::new().mode(0o700).create(data_dir);
        made.with_context(|| format!("can't create the data directory {}", data_dir.display()))?;
    }
    private(data_dir)?;
    let restored = async {
        data_dir::begin_restore(data_dir)?;
        restore_files(dir, data_dir)?;
        if let Some(key) = key {
            storage_key::write(data_dir, key)?;
        }
        let recovered = restore_streams(config, dir, manifest).await?;
        data_dir::restored(data_dir)?;
        Ok(recovered)
    };
    restored.await.map_err(|error: anyhow::Error| {
        error.context(format!(
            "the restore did not finish: remove {} and run `herald restore` again",
            data_dir.display()
        ))
    })
}

fn check_target(dir: &Path, data_dir: &Path) -> Result<()> {
    ensure!(
        !is_in(data_dir, dir),
        "the data directory {} is in the backup {}: name another one with --data-dir",
        data_dir.display(),
        dir.display()
    );
    if !data_dir.exists() {
        return check_parent(data_dir);
    }
    data_dir::check(data_dir, false)?;
    ensure!(
        is_empty(data_dir)?,
        "the data directory {} is not empty: restore into one that is, or that doesn't exist",
        data_dir.display()
    );
    Ok(())
}

/// Checks that the devices of a backup can be read.
fn check_keys(config: &Config, manifest: &Manifest, key: Option<&Secret>) -> Result<()> {
    let mut encryption = config.store.encryption.clone();
    if let Some(key) = key {
        let added = encryption.add_previous(key);
        added.map_err(|reason| anyhow!(reason))?;
    }
    // The start after the restore removes the devices whose keys are lost.
    let keys = encryption.key_ids().into_iter().chain(encryption.lost_key_ids());
    let keys: Vec<String> = keys.map(|key| key.to_string()).collect();
    let lacking: Vec<&str> = manifest
        .storage_keys
        .iter()
        .filter(|key| !keys.contains(key))
        .map(String::as_str)
        .collect();
    ensure!(
        lacking.is_empty(),
        "the devices of this backup are encrypted with the storage key {}, which a backup does not have: name its file with \
         --storage-key (`herald up` has it as storage.key in its data directory), or set store.encryption.key; if it is lost \
         for good, set store.encryption.lost_keys to its id, and restore without these devices",
        lacking.join(" and ")
    );
    Ok(())
}

/// Copies the embedded store and the other files.
fn restore_files(dir: &Path, data_dir: &Path) -> Result<()> {
    for part in [STORE, FILES] {
        let from = dir.join(part);
        if !from.exists() {
            continue;
        }
        for entry in fs::read_dir(&from).with_context(|| format!("can't read {}", from.display()))? {
            let entry = entry?;
            copy(&entry.path(), &data_dir.join(entry.file_name()))?;
        }
    }
    Ok(())
}

async fn restore_streams(config: &Config, dir: &Path, manifest: &Manifest) -> Result<Recovered> {
    let restoring = Recovering::start(config).await?;
    let restored = restoring.restore(dir, manifest).await;
    let stopped = restoring.stop().await;
    let recovered = restored?;
    stopped?;
    Ok(recovered)
}
