//! The temporary directory of a server, and the shell that cleans up after a parent that died.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::error::{Error, Result};

/// Waits for the end of the parent, which closes standard input. Then wakes and ends a server that still runs, such as a
/// paused one, and removes the directory. A pid is signalled only if the command line of its process names the directory.
const SCRIPT: &str = r#"
while read -r _; do :; done
[ -d "$1" ] || exit 0
pid=$(cat "$1/server.pid" 2>/dev/null)
serves() { ps -ww -o args= -p "$pid" 2>/dev/null | grep -qF "$1"; }
if [ -n "$pid" ] && serves "$1"; then kill -QUIT "$pid"; kill -CONT "$pid"; fi
tries=0
while [ -n "$pid" ] && [ $tries -lt 100 ] && serves "$1"; do sleep 0.1; tries=$((tries + 1)); done
if [ -n "$pid" ] && serves "$1"; then kill -KILL "$pid"; fi
tries=0
until rm -rf "$1" 2>/dev/null || [ $tries -ge 50 ]; do sleep 0.1; tries=$((tries + 1)); done
"#;

/// A temporary directory that is removed when it is dropped, and also when this process dies.
#[derive(Debug)]
pub(crate) struct Directory {
    // `None` only during `drop`.
    temp: Option<TempDir>,
    keeper: Child,
}

impl Directory {
    pub(crate) fn create(prefix: &str) -> Result<Self> {
        let temp = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir()
            .map_err(Error::io("create a temporary directory"))?;
        let keeper = Command::new("sh")
            .args(["-c", SCRIPT, "herald-local-stores"])
            .arg(temp.path())
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::io("start sh"))?;
        Ok(Self {
            temp: Some(temp),
            keeper,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.temp.as_ref().map_or(Path::new("/"), TempDir::path)
    }

    /// Tells the shell which process to end.
    pub(crate) fn serves(&self, pid: u32) -> Result<()> {
        std::fs::write(self.path().join("server.pid"), pid.to_string())
            .map_err(Error::io("write the pid of the server"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // An error leaves the directory to the shell.
        drop(self.temp.take());
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
