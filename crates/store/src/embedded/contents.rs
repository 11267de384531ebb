//! What the data directory has: the file `contents` lists its databases and their keyspaces.
//!
//! A database that is missing would be made anew, empty, and nobody would notice; fjall even removes the keyspaces that
//! a lost list of its own does not name. So what is missing is found before fjall opens a database, or before a keyspace
//! is made.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::dir::{io_error, write_durably};
use crate::{Error, ErrorKind, Result};

const FILE: &str = "contents";
const FORMAT: &str = "herald-contents 1";

/// The directories of the databases.
pub(super) const DATABASES: [&str; 4] = ["records", "dead_letters", "totals", "timelines"];

/// The contents of a data directory at its last start.
pub(crate) struct Contents {
    dir: PathBuf,
    /// `DATABASE/KEYSPACE`. `None` if a version of Herald that did not record them made the directory.
    recorded: Option<BTreeSet<String>>,
}

impl Contents {
    /// Records that a new data directory has nothing yet. A start that is interrupted before its end is repeated.
    pub(super) fn begin(dir: &Path) -> Result<()> {
        Self::write(dir, &BTreeSet::new())
    }

    /// Reads the list.
    pub(super) fn load(dir: &Path) -> Result<Self> {
        Ok(Self {
            dir: dir.into(),
            recorded: read(dir)?,
        })
    }

    /// Reads the list, and checks that each database is there.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let contents = Self::load(dir)?;
        let exists = |name: &&str| dir.join(name).exists();
        let (present, absent): (Vec<&str>, Vec<&str>) = DATABASES.into_iter().partition(exists);
        for name in absent {
            if contents.expects(name, !present.is_empty()) {
                return Err(contents.missing(
                    name,
                    &format!("the database {name} ({})", dir.join(name).display()),
                ));
            }
        }
        for name in present {
            contents.check_files(name)?;
        }
        Ok(contents)
    }

    /// Records that a database was removed on purpose.
    pub(super) fn forget(dir: &Path, database: &str) -> Result<()> {
        let Some(mut recorded) = read(dir)? else {
            return Ok(());
        };
        recorded.retain(|keyspace| database_of(keyspace) != database);
        Self::write(dir, &recorded)
    }

    /// Nothing is recorded. For tests of a part of the engine.
    #[cfg(test)]
    pub(super) fn none(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            recorded: Some(BTreeSet::new()),
        }
    }

    /// Checks that an open database has its keyspaces. Call it before missing keyspaces are made.
    pub(crate) fn check(&self, name: &str, database: &fjall::Database) -> Result<()> {
        let found = keyspaces(name, database);
        let recorded = self.recorded.iter().flatten();
        let mut lost =
            recorded.filter(|keyspace| database_of(keyspace) == name && !found.contains(*keyspace));
        match lost.next() {
            Some(keyspace) => Err(self.missing(name, &format!("the keyspace {keyspace}"))),
            None => Ok(()),
        }
    }

    /// Records what the directory has, once all its databases are open.
    pub(super) fn record(&self, databases: [(&str, &fjall::Database); DATABASES.len()]) -> Result<()> {
        let found = databases.into_iter();
        let found = found
            .flat_map(|(name, database)| keyspaces(name, database))
            .collect();
        if self.recorded.as_ref() == Some(&found) {
            return Ok(());
        }
        Self::write(&self.dir, &found)
    }

    fn write(dir: &Path, keyspaces: &BTreeSet<String>) -> Result<()> {
        let mut text = format!("{FORMAT}\n");
        for keyspace in keyspaces {
            text.push_str(keyspace);
            text.push('\n');
        }
        write_durably(dir, FILE, &text)
            .map_err(|error| io_error(format!("can't write {}", dir.join(FILE).display()), error))
    }

    /// Whether a database must exist. Where nothing is recorded, all of them exist or none.
    pub(super) fn expects(&self, name: &str, others_exist: bool) -> bool {
        match &self.recorded {
            Some(recorded) => recorded.iter().any(|keyspace| database_of(keyspace) == name),
            None => others_exist,
        }
    }

    /// Checks that the directory of a database has the files without which fjall takes it for new or empty.
    pub(super) fn check_files(&self, name: &str) -> Result<()> {
        let dir = self.dir.join(name);
        if !self.expects(name, true) {
            return remove_unfinished(&dir);
        }
        let missing = |file: &str| Err(self.missing(name, &format!("the file {}", dir.join(file).display())));
        if !dir.join("version").exists() {
            return missing("version");
        }
        let has_journal = names(&dir)?
            .iter()
            .any(|name| name.strip_suffix(".jnl").is_some());
        if !has_journal {
            return missing("*.jnl");
        }
        // The list of keyspaces is keyspace 0.
        if !dir.join("keyspaces/0/current").exists() {
            return missing("keyspaces/0/current");
        }
        // Keyspaces of timelines are removed by a rebuild; the check of the open database finds others.
        let keyspaces = if name == "timelines" {
            Vec::new()
        } else {
            names(&dir.join("keyspaces"))?
        };
        for keyspace in keyspaces {
            let path = dir.join("keyspaces").join(&keyspace);
            let tables = path.join("tables");
            if !path.join("current").exists() && tables.exists() && !names(&tables)?.is_empty() {
                return missing(&format!("keyspaces/{keyspace}/current"));
            }
        }
        Ok(())
    }

    fn missing(&self, database: &str, what: &str) -> Error {
        let dir = self.dir.display();
        let remedy = if database == "timelines" {
            format!(
                "run `herald recover --data-dir {dir}`: the next start then rebuilds the timelines from the ledger"
            )
        } else {
            "restore the whole directory from a backup; to give up all data, remove the whole directory"
                .into()
        };
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "the data directory {dir} has lost a part of its data: {what} is missing, and was there at the last \
                 start; put it back from where it was moved to, or {remedy}"
            ),
        )
    }
}

/// The keyspaces of an open database, as `DATABASE/KEYSPACE`.
fn keyspaces(name: &str, database: &fjall::Database) -> BTreeSet<String> {
    let names = database.list_keyspace_names().into_iter();
    names.map(|keyspace| format!("{name}/{keyspace}")).collect()
}

fn database_of(keyspace: &str) -> &str {
    keyspace
        .split_once('/')
        .map_or(keyspace, |(database, _)| database)
}

fn read(dir: &Path) -> Result<Option<BTreeSet<String>>> {
    let path = dir.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(format!("can't read {}", path.display()), error)),
    };
    let mut lines = text.lines();
    if lines.next() != Some(FORMAT) {
        let message = format!(
            "{} is not a list that this version of Herald wrote: use the version that wrote it",
            path.display()
        );
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(Some(lines.map(str::to_owned).collect()))
}

/// Removes a database that was not made completely: its first start was interrupted. fjall would refuse it.
fn remove_unfinished(dir: &Path) -> Result<()> {
    if dir.join("version").exists() {
        return Ok(());
    }
    let has_keyspaces = dir.join("keyspaces").exists() && !names(&dir.join("keyspaces"))?.is_empty();
    if has_keyspaces {
        return Ok(());
    }
    fs::remove_dir_all(dir).map_err(|error| io_error(format!("can't remove {}", dir.display()), error))
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    });
    entries.map_err(|error| io_error(format!("can't read the directory {}", dir.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::{Config, Embedded};

    fn open(dir: &Path) -> Result<Embedded> {
        Embedded::open(&Config {
            data_dir: dir.into(),
            ..Config::default()
        })
    }

    /// Opens a new store and closes it; then `damage` does something to its directory.
    fn assert_refused(damage: impl Fn(&Path), named: &str) {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap().close().unwrap();
        open(dir.path()).unwrap().close().unwrap();
        damage(dir.path());
        let error = open(dir.path())
            .err()
            .unwrap_or_else(|| panic!("{named} is not missed"));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let message = error.to_string();
        assert!(
            message.contains(named) && message.contains(dir.path().to_str().unwrap()),
            "{named}: {message}"
        );
        let (missing, remedy) = message.split_once(" is missing").unwrap();
        assert_eq!(
            remedy.contains("herald recover"),
            missing.contains("timelines"),
            "{message}"
        );
    }

    #[test]
    fn a_missing_database_is_named_and_not_made_anew() {
        for name in DATABASES {
            assert_refused(|dir| fs::remove_dir_all(dir.join(name)).unwrap(), name);
            // As a version of Herald leaves it that recorded nothing.
            let damage = |dir: &Path| {
                fs::remove_file(dir.join(FILE)).unwrap();
                fs::remove_dir_all(dir.join(name)).unwrap();
            };
            assert_refused(damage, name);
        }
    }

    #[test]
    fn missing_files_of_a_database_are_named() {
        for name in DATABASES {
            assert_refused(
                |dir| fs::remove_file(dir.join(name).join("version")).unwrap(),
                "version",
            );
            assert_refused(
                |dir| fs::remove_file(dir.join(name).join("0.jnl")).unwrap(),
                "*.jnl",
            );
            let list = |dir: &Path| dir.join(name).join("keyspaces/0");
            assert_refused(
                |dir| fs::remove_dir_all(list(dir)).unwrap(),
                "keyspaces/0/current",
            );
            let keyspace = |dir: &Path| dir.join(name).join("keyspaces/2");
            assert_refused(|dir| fs::remove_dir_all(keyspace(dir)).unwrap(), "the keyspace");
        }
    }

    #[test]
    fn an_interrupted_first_start_is_repeated() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap().close().unwrap();
        Contents::begin(dir.path()).unwrap();
        fs::remove_dir_all(dir.path().join("timelines")).unwrap();
        fs::remove_file(dir.path().join("totals/version")).unwrap();
        fs::remove_dir_all(dir.path().join("totals/keyspaces")).unwrap();
        open(dir.path()).unwrap().close().unwrap();
        open(dir.path()).unwrap().close().unwrap();
    }

    #[test]
    fn a_directory_without_a_list_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap().close().unwrap();
        let listed = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(
            listed.contains("\ntimelines/runs\n") && listed.contains("\nrecords/posts\n"),
            "{listed}"
        );
        fs::remove_file(dir.path().join(FILE)).unwrap();
        open(dir.path()).unwrap().close().unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), listed);
    }
}
