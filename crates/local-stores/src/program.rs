//! Where the programs are, and the unprivileged user that PostgreSQL needs.

use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};

use crate::error::{Error, Result};

/// Directory of PostgreSQL's programs, if it is neither on the PATH nor where distributions put it.
const POSTGRES_BIN: &str = "POSTGRES_BIN";
/// Path of redis-server or valkey-server, if it is not on the PATH.
const REDIS_SERVER: &str = "REDIS_SERVER";

const POSTGRES_HINT: &str = "install PostgreSQL 15 or newer (Debian, Ubuntu: apt-get install postgresql; macOS: brew install \
                             postgresql), or set POSTGRES_BIN to the directory of initdb and postgres";
const REDIS_HINT: &str = "install Redis 7 or Valkey (Debian, Ubuntu: apt-get install redis-server; macOS: brew install valkey), or \
                          set REDIS_SERVER to the path of redis-server or valkey-server";

/// Directory of `initdb` and `postgres`: that of the environment, of the PATH, or the newest of the distribution's.
pub(crate) fn postgres_bin() -> Result<PathBuf> {
    let is_bin = |dir: &PathBuf| dir.join("initdb").is_file() && dir.join("postgres").is_file();
    let missing = |searched: String| Error::Missing {
        program: "PostgreSQL",
        searched,
        hint: POSTGRES_HINT,
    };
    if let Some(dir) = std::env::var_os(POSTGRES_BIN) {
        let dir = PathBuf::from(dir);
        return if is_bin(&dir) {
            Ok(dir)
        } else {
            Err(missing(format!("{}, named by {POSTGRES_BIN}", dir.display())))
        };
    }
    on_path().find(is_bin).or_else(|| newest(is_bin)).ok_or_else(|| {
        missing(
            "the PATH, /usr/lib/postgresql/*/bin, /usr/pgsql-*/bin and /opt/homebrew/opt/postgresql*/bin"
                .into(),
        )
    })
}

/// Path of a Redis or Valkey server.
pub(crate) fn redis_server() -> Result<PathBuf> {
    let missing = |searched: String| Error::Missing {
        program: "redis-server or valkey-server",
        searched,
        hint: REDIS_HINT,
    };
    if let Some(path) = std::env::var_os(REDIS_SERVER) {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(missing(format!("{}, named by {REDIS_SERVER}", path.display())))
        };
    }
    ["valkey-server", "redis-server"]
        .iter()
        .find_map(|name| on_path().map(|dir| dir.join(name)).find(|path| path.is_file()))
        .ok_or_else(|| missing("the PATH".into()))
}

fn on_path() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).collect::<Vec<_>>().into_iter()
}

/// The newest PostgreSQL in the directories that distributions use.
fn newest(is_bin: impl Fn(&PathBuf) -> bool) -> Option<PathBuf> {
    let places = [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql@"),
        ("/usr/local/opt", "postgresql@"),
    ];
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for (place, prefix) in places {
        let Ok(entries) = std::fs::read_dir(place) else {
            continue;
        };
        for entry in entries.flatten() {
            let version = entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_prefix(prefix)?.parse().ok());
            let dir = entry.path().join("bin");
            if let Some(version) = version.filter(|_| is_bin(&dir)) {
                found.push((version, dir));
            }
        }
    }
    found.into_iter().max().map(|(_, dir)| dir)
}

/// A user as which PostgreSQL runs when this process is root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// The unprivileged user to switch to; `None` if this process is not root.
    pub(crate) fn unprivileged() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = std::fs::read_to_string("/etc/passwd").map_err(Error::io("read /etc/passwd"))?;
        let user = |name: &str| {
            let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2);
            Some(Self {
                uid: fields.next()?.parse().ok()?,
                gid: fields.next()?.parse().ok()?,
            })
        };
        user("postgres")
            .or_else(|| user("nobody"))
            .map(Some)
            .ok_or(Error::NoUser)
    }

    /// Gives the directory to the user.
    pub(crate) fn own(self, dir: &Path) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::chown(dir, Some(uid), Some(gid))
            .map_err(std::io::Error::from)
            .map_err(Error::io(format!(
                "give {} to the user of PostgreSQL",
                dir.display()
            )))
    }
}
