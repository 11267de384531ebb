//! Writes backups, and reads them back.
//!
//! | in the directory | |
//! |---|---|
//! | `streams/NAME.snapshot` | a stream with its consumers, as nats-server makes snapshots |
//! | `store/` | a data directory of the embedded store; absent if PostgreSQL has the store |
//! | `files/` | other files of the data directory: the VAPID key, Parquet files |
//! | `backup.json` | the headers of the streams; written last, so a directory without it is no backup |
//!
//! The streams come first: a message that is acknowledged in its copy has had its effect in the store, which is copied
//! later. What was published in between is missing in the streams and known to the store, where a repairing audit finds it.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use herald_mesh::{Mesh, SnapshotHeader, Topology};
use herald_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::{BufReader, BufWriter};

use super::engine::Engine;

/// The version of the layout.
const FORMAT: u32 = 1;
const MANIFEST: &str = "backup.json";
const STREAMS: &str = "streams";
const STORE: &str = "store";
const FILES: &str = "files";
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
            .map(|stream| stream.header.message_count())
            .sum()
    }
}

/// Checks that a directory can take a backup, and makes it.
pub(super) fn prepare(dir: &Path) -> Result<()> {
    ensure!(
        dir.is_absolute(),
        "the directory {} must be an absolute path",
        dir.display()
    );
    if dir.exists() {
        let mut entries = fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))?;
        ensure!(
            entries.next().is_none(),
            "the directory {} is not empty: name one that is, or that doesn't exist",
            dir.display()
        );
    }
    fs::create_dir_all(dir.join(STREAMS)).with_context(|| format!("can't create {}", dir.display()))?;
    private(dir)
}

/// Writes a backup of the streams and of the embedded store into a prepared directory. `data_dir`: where the other files
/// are; `None` if the process has none.
pub(super) async fn write(
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
    let store_rows = match engine {
        Engine::Embedded(store) => {
            let (store, to) = (store.clone(), dir.join(STORE));
            let copied = tokio::task::spawn_blocking(move || store.backup(&to)).await?;
            Some(copied.context("can't copy the store")?.rows)
        }
        _ => None,
    };
    if let Some(data_dir) = data_dir {
        for kept in KEPT {
            let (from, to) = (data_dir.join(kept), dir.join(FILES).join(kept));
            if from.exists() {
                tokio::task::spawn_blocking(move || copy(&from, &to)).await??;
            }
        }
    }
    let manifest = Manifest {
        format: FORMAT,
        herald_version: env!("CARGO_PKG_VERSION").into(),
        began_at_us,
        streams,
        store_rows,
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
    let manifest: Manifest =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    if manifest.format != FORMAT {
        bail!(
            "the backup has the format {}, and this version of Herald reads {FORMAT}: use the version that wrote it ({})",
            manifest.format,
            manifest.herald_version
        );
    }
    Ok(manifest)
}

/// Copies the embedded store and the other files of a backup into a new data directory.
pub(crate) fn restore_files(dir: &Path, data_dir: &Path) -> Result<()> {
    let exists = || format!("can't use the data directory {}", data_dir.display());
    if data_dir.exists() {
        ensure!(
            fs::read_dir(data_dir).with_context(exists)?.next().is_none(),
            "the data directory {} is not empty: restore into one that is, or that doesn't exist",
            data_dir.display()
        );
    }
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
    private(data_dir)
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

/// Copies a file, or a directory with everything in it. A file that vanishes meanwhile is left out.
fn copy(from: &Path, to: &Path) -> Result<()> {
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
    match fs::copy(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        copied => {
            copied.with_context(failed)?;
            File::open(to)
                .and_then(|copy| copy.sync_all())
                .with_context(failed)
        }
    }
}

/// Lets the user of this process alone read a directory: it has posts, devices and secrets.
fn private(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let permissions = fs::Permissions::from_mode(0o700);
    fs::set_permissions(dir, permissions)
        .with_context(|| format!("can't change the mode of {}", dir.display()))
}

/// The path of the socket of a data directory.
pub(crate) fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}
