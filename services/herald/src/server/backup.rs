//! Writes backups, and reads them back.
//!
//! | in the directory | |
//! |---|---|
//! | `streams/NAME.snapshot` | a stream with its consumers, as nats-server makes snapshots |
//! | `store/` | a data directory of the embedded store; absent if PostgreSQL has the store |
//! | `files/` | other files of the data directory: the VAPID key, Parquet files; not the storage key |
//! | `backup.json` | the headers of the streams and the checksums of all files; written last, so a directory without it is no backup |
//!
//! The streams come first: a message that is acknowledged in its copy has had its effect in the store, which is copied
//! later. What was published in between is missing in the streams and known to the store, where a repairing audit finds it.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use herald_mesh::{Mesh, SnapshotHeader, Topology};
use herald_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::{BufReader, BufWriter};

use super::{
    checksums::{self, FileSum},
    data_dir::{LOST_AND_FOUND, check_parent, is_in},
    engine::Engine,
};

/// The version of the layout.
const FORMAT: u32 = 2;
pub(super) const MANIFEST: &str = "backup.json";
const STREAMS: &str = "streams";
pub(super) const STORE: &str = "store";
pub(super) const FILES: &str = "files";
/// Entries of the data directory beside store and streams that belong into a backup.
const KEPT: [&str; 2] = ["vapid.key", "analytics"];

/// What is in a backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    herald_version: String,
    /// When the backup began, microseconds since 1970.
    pub(crate) began_at_us: i64,
    pub(crate) streams: Vec<StreamCopy>,
    /// Rows of the embedded store; `None` if PostgreSQL has the store.
    pub(crate) store_rows: Option<u64>,
    /// The storage keys that the devices of the embedded store are encrypted with, which the backup does not have. Absent
    /// in backups of before.
    #[serde(default)]
    pub(crate) storage_keys: Vec<String>,
    /// All files but this one.
    pub(crate) files: Vec<FileSum>,
}

/// What the file has in each format.
#[derive(Deserialize)]
struct Version {
    format: u32,
    herald_version: String,
}

/// A stream in a backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StreamCopy {
    pub(crate) name: String,
    header: SnapshotHeader,
}

/// Progress of a backup.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    pub(crate) streams: u32,
    pub(crate) streams_total: u32,
    pub(crate) messages: u64,
}

impl Manifest {
    /// Messages in all streams.
    pub(crate) fn message_count(&self) -> u64 {
        self.streams
            .iter()
            .fold(0, |sum, stream| sum.saturating_add(stream.header.message_count()))
    }
}

/// A directory that can take a backup.
pub(super) struct Target {
    dir: PathBuf,
    /// Whether it was made for this backup.
    is_made: bool,
}

impl Target {
    /// Checks that a directory can take a backup, and makes it. `data_dir`: that of the store and the streams, if there is
    /// one.
    pub(super) fn prepare(dir: &Path, data_dir: Option<&Path>) -> Result<Self> {
        ensure!(
            dir.is_absolute(),
            "the directory {} must be an absolute path",
            dir.display()
        );
        if let Some(data_dir) = data_dir.filter(|data_dir| is_in(dir, data_dir)) {
            bail!(
                "the directory {} is in the data directory {}, which it shall outlive: name another one, best on another disk",
                dir.display(),
                data_dir.display()
            );
        }
        let is_made = !dir.exists();
        if is_made {
            check_parent(dir)?;
        } else if !is_empty(dir)? {
            if dir.join(STREAMS).is_dir() && !dir.join(MANIFEST).exists() {
                bail!(
                    "the directory {} is not empty: it has a backup that did not finish; remove it, or name another one",
                    dir.display()
                );
            }
            bail!(
                "the directory {} is not empty: name one that is, or that doesn't exist",
                dir.display()
            );
        }
        fs::create_dir_all(dir.join(STREAMS)).with_context(|| format!("can't create {}", dir.display()))?;
        private(dir)?;
        Ok(Self {
            dir: dir.into(),
            is_made,
        })
    }

    /// Writes a backup of the streams and of the embedded store. `data_dir`: where the other files are; `None` if the
    /// process has none. Removes what it has written if it fails.
    pub(super) async fn write(
        self,
        mesh: &Mesh,
        topology: &Topology,
        engine: &Engine,
        data_dir: Option<&Path>,
        progress: impl Fn(Progress),
    ) -> Result<Manifest> {
        let written = write(mesh, topology, engine, data_dir, &self.dir, progress).await;
        written.map_err(|error| match self.remove() {
            Ok(()) => error.context("the backup was not made, and what was written of it is removed"),
            Err(_) => error.context(format!(
                "the backup was not made: remove what was written of it in {}",
                self.dir.display()
            )),
        })
    }

    fn remove(&self) -> std::io::Result<()> {
        if self.is_made {
            return fs::remove_dir_all(&self.dir);
        }
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name() == LOST_AND_FOUND {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

async fn write(
    mesh: &Mesh,
    topology: &Topology,
    engine: &Engine,
    data_dir: Option<&Path>,
    dir: &Path,
    progress: impl Fn(Progress),
) -> Result<Manifest> {
    let began_at_us = Timestamp::now().0;
    let mut now = Progress {
        streams_total: topology.streams.len() as u32,
        ..Progress::default()
    };
    let mut streams = Vec::new();
    for stream in &topology.streams {
        let path = dir.join(STREAMS).join(format!("{}.snapshot", stream.name));
        let failed = || format!("can't write {}", path.display());
        let file = tokio::fs::File::create(&path).await.with_context(failed)?;
        let mut file = BufWriter::new(file);
        let header = mesh.snapshot(&stream.name, &mut file).await?;
        file.into_inner().sync_all().await.with_context(failed)?;
        now.streams += 1;
        now.messages += header.message_count();
        progress(now);
        streams.push(StreamCopy {
            name: stream.name.clone(),
            header,
        });
    }
    let (store_rows, storage_keys) = match engine {
        Engine::Embedded(store) => {
            let (keys, to) = (store.storage_keys(), dir.join(STORE));
            let store = store.clone();
            let copied = tokio::task::spawn_blocking(move || store.backup(&to)).await?;
            let rows = copied.context("can't copy the store")?.rows;
            // After the copy: a key that was recorded since then is named too, and one that was forgotten was needed by
            // no device of the copy. A rotation waits for the end of the backup.
            (
                Some(rows),
                keys.in_use()
                    .await
                    .context("can't read which storage keys are in use")?,
            )
        }
        _ => (None, Vec::new()),
    };
    if let Some(data_dir) = data_dir {
        for kept in KEPT {
            let (from, to) = (data_dir.join(kept), dir.join(FILES).join(kept));
            if from.exists() {
                tokio::task::spawn_blocking(move || copy(&from, &to)).await??;
            }
        }
    }
    let summed = dir.to_owned();
    let files = tokio::task::spawn_blocking(move || checksums::of(&summed)).await??;
    let manifest = Manifest {
        format: FORMAT,
        herald_version: env!("CARGO_PKG_VERSION").into(),
        began_at_us,
        streams,
        store_rows,
        storage_keys: storage_keys.iter().map(ToString::to_string).collect(),
        files,
    };
    write_manifest(dir, &manifest)
        .with_context(|| format!("can't write {}", dir.join(MANIFEST).display()))?;
    Ok(manifest)
}

/// Reads what is in a backup.
///
/// # Errors
/// The directory has no complete backup, or one of another version.
pub(crate) fn read_manifest(dir: &Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST);
    let text = fs::read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow!(
            "{} has no complete backup: the file {MANIFEST}, which is written last, is missing",
            dir.display()
        ),
        _ => anyhow::Error::new(error).context(format!("can't read {}", path.display())),
    })?;
    let damaged = || format!("{} is damaged", path.display());
    // First what each format has: another one may lack the rest.
    let version: Version = serde_json::from_slice(&text).with_context(damaged)?;
    if version.format != FORMAT {
        bail!(
            "the backup has the format {}, and this version of Herald reads {FORMAT}: use the version that wrote it ({})",
            version.format,
            version.herald_version
        );
    }
    let manifest: Manifest = serde_json::from_slice(&text).with_context(damaged)?;
    // A restore reads and copies these paths, which must stay in the directory of the backup.
    let names = manifest.streams.iter().map(|stream| Path::new(&stream.name));
    let outside = names
        .chain(manifest.files.iter().map(|file| &*file.path))
        .find(|path| !is_below(path));
    if let Some(outside) = outside {
        return Err(anyhow!("{} is no path in the backup", outside.display())).with_context(damaged);
    }
    Ok(manifest)
}

/// Whether a relative path stays below the directory that it is relative to.
fn is_below(path: &Path) -> bool {
    let is_name = |part| matches!(part, Component::Normal(_));
    path.components().next().is_some() && path.components().all(is_name)
}

/// Creates the streams and consumers of a backup on a server that has none of them.
pub(super) async fn restore_streams(mesh: &Mesh, dir: &Path, manifest: &Manifest) -> Result<()> {
    for stream in &manifest.streams {
        ensure!(
            mesh.sequences(&stream.name).await?.is_none(),
            "stream {} exists: restore to a NATS server without Herald's streams",
            stream.name
        );
    }
    for stream in &manifest.streams {
        let path = dir.join(STREAMS).join(format!("{}.snapshot", stream.name));
        let file = tokio::fs::File::open(&path).await;
        let file = file.with_context(|| format!("can't read {}", path.display()))?;
        mesh.restore_snapshot(&stream.name, &stream.header, &mut BufReader::new(file))
            .await?;
    }
    Ok(())
}

fn write_manifest(dir: &Path, manifest: &Manifest) -> Result<()> {
    let new = dir.join("backup.json.new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec_pretty(manifest)?)?;
    file.sync_all()?;
    fs::rename(&new, dir.join(MANIFEST))?;
    Ok(File::open(dir)?.sync_all()?)
}

/// Copies a file, or a directory with everything in it, for the user of this process alone. A file that vanishes meanwhile
/// is left out.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = || format!("can't copy {} to {}", from.display(), to.display());
    if from.is_dir() {
        fs::create_dir_all(to).with_context(failed)?;
        for entry in fs::read_dir(from).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(failed)?;
    }
    // Not `fs::copy`, which takes over the permissions.
    let mut source = match File::open(from) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.with_context(failed)?,
    };
    let mut target = File::create(to).with_context(failed)?;
    std::io::copy(&mut source, &mut target).with_context(failed)?;
    target.sync_all().with_context(failed)
}

/// Whether a directory has nothing but what its file system has.
pub(super) fn is_empty(dir: &Path) -> Result<bool> {
    let entries = fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("can't read {}", dir.display()))?;
        if entry.file_name() != LOST_AND_FOUND {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lets the user of this process alone read a directory: it has posts, devices and secrets.
pub(super) fn private(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let permissions = fs::Permissions::from_mode(0o700);
    fs::set_permissions(dir, permissions)
        .with_context(|| format!("can't change the mode of {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_backup_of_another_format_names_the_version_that_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = |text: &str| {
            fs::write(dir.path().join(MANIFEST), text).unwrap();
            format!("{:#}", read_manifest(dir.path()).unwrap_err())
        };
        let first = refusal(
            r#"{"format": 1, "herald_version": "0.9.0", "began_at_us": 0, "streams": [], "store_rows": null}"#,
        );
        assert!(
            first.contains("has the format 1") && first.contains("use the version that wrote it (0.9.0)"),
            "{first}"
        );
        let same = refusal(r#"{"format": 2, "herald_version": "1.0.0", "began_at_us": 0, "streams": []}"#);
        assert!(same.contains("backup.json is damaged: missing field"), "{same}");
    }

    fn manifest() -> String {
        r#"{"format": 2, "herald_version": "1.0.0", "began_at_us": 0, "store_rows": 7, "streams": [{"name": "POSTS",
            "header": {"config": {}, "state": {"messages": 18446744073709551615, "last_seq": 9}}},
            {"name": "DLQ", "header": {"config": {}, "state": {"messages": 1}}}],
            "files": [{"path": "store/a", "bytes": 1, "xxh3": "00"}]}"#
            .into()
    }

    #[test]
    fn a_manifest_that_names_what_is_outside_of_the_backup_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            fs::write(dir.path().join(MANIFEST), text).unwrap();
            read_manifest(dir.path())
        };
        assert_eq!(read(&manifest()).unwrap().message_count(), u64::MAX);
        for outside in ["/dev/zero", "../secret", "store/../../secret", "", "."] {
            for inside in ["store/a", "POSTS"] {
                let text = manifest().replace(&format!("{inside:?}"), &format!("{outside:?}"));
                let refused = format!("{:#}", read(&text).unwrap_err());
                assert!(refused.contains("is damaged"), "{outside}: {refused}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn bytes_near_a_manifest_are_read_or_refused(text in herald_fuzz::near(Just(manifest().into_bytes()))) {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(MANIFEST), &text).unwrap();
            if let Ok(manifest) = read_manifest(dir.path()) {
                let _ = manifest.message_count();
                prop_assert!(manifest.files.iter().all(|file| is_below(&file.path)));
                let damage = crate::server::verify_files(dir.path(), &manifest.files);
                prop_assert_eq!(damage.unwrap().len(), manifest.files.len());
            }
        }
    }
}
