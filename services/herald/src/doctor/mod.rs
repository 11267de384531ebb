//! The checks of `herald doctor`: what can be wrong with a running mesh and its configuration.
//!
//! [`observe`] reads the facts once, each check is a function from the facts to its findings, and what could not be read
//! is named with its reason.

mod checks;
mod observe;
mod observed;

use std::fmt;

use serde::Serialize;

pub(crate) use observe::{MeshFlags, Target, observe};
pub(crate) use observed::{Observed, Unchecked};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Posts, deliveries or dead letters are lost, late or repeated, or will be.
    Error,
    /// Something works less well than it should, or will fail together with something else.
    Warning,
    /// Worth knowing; nothing has to be done.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// Which trap; never changes.
    pub(crate) id: String,
    pub(crate) severity: Severity,
    /// What was found, and where.
    pub(crate) what: String,
    /// What it does.
    pub(crate) why: String,
    /// What to do.
    pub(crate) remedy: String,
}

impl Finding {
    fn new(
        severity: Severity,
        id: &str,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            id: id.into(),
            severity,
            what: what.into(),
            why: why.into(),
            remedy: remedy.into(),
        }
    }

    fn error(id: &str, what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Error, id, what, why, remedy)
    }

    fn warning(id: &str, what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Warning, id, what, why, remedy)
    }

    fn note(id: &str, what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Note, id, what, why, remedy)
    }
}

/// Runs all checks; the worst findings come first, and before them what others may follow from.
pub(crate) fn examine(observed: &Observed) -> Vec<Finding> {
    let mut findings: Vec<Finding> = checks::ALL.iter().flat_map(|check| check(observed)).collect();
    let is_cause = |finding: &Finding| finding.id == OWN_TOPOLOGY.0 && finding.what.contains(OWN_TOPOLOGY.1);
    findings.sort_by(|a, b| {
        let key = |one| (!is_cause(one), one.severity);
        (key(a), &a.id, &a.what).cmp(&(key(b), &b.id, &b.what))
    });
    for finding in &mut findings {
        finding.remedy = with_flags(&finding.remedy, &observed.flags);
    }
    findings
}

/// The id of a finding, and what it says of the configuration of this command: what this command compares with it
/// differs as well then.
const OWN_TOPOLOGY: (&str, &str) = ("topology-differs", "this command");

/// The commands of a remedy with the flags that name the mesh.
fn with_flags(remedy: &str, flags: &MeshFlags) -> String {
    let mut remedy = remedy.to_owned();
    for (command, flags) in [
        ("topology apply", &flags.nats),
        ("recover", &flags.whole),
        ("doctor", &flags.whole),
    ] {
        remedy = remedy.replace(
            &format!("`herald {command}`"),
            &format!("`herald {command}{flags}`"),
        );
    }
    remedy
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The texts in quotes or backticks that look like ids.
    fn ids(text: &str, quote: char) -> BTreeSet<String> {
        let is_id = |text: &&str| {
            text.contains('-')
                && text.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                && !text.starts_with('-')
                && !text.ends_with('-')
        };
        text.split(quote).filter(is_id).map(str::to_owned).collect()
    }

    #[test]
    fn the_table_of_the_documents_has_all_findings() {
        let sources = [
            include_str!("checks/away.rs"),
            include_str!("checks/consumers.rs"),
            include_str!("checks/places.rs"),
            include_str!("checks/readers.rs"),
            include_str!("checks/streams.rs"),
        ];
        let code = sources.map(|source| source.split("#[cfg(test)]").next().unwrap());
        let mut found = ids(&code.join("\n"), '"');
        found.extend(observe::FROM_STORE.map(str::to_owned));
        let documents = include_str!("../../../../docs/OPERATIONS.md");
        let (_, table) = documents.split_once("| finding |").unwrap();
        let (table, _) = table.split_once("\n\n").unwrap();
        let listed: String = table.lines().filter_map(|line| line.split('|').nth(1)).collect();
        let listed = ids(&listed, '`');
        assert_eq!(listed, found);
    }

    #[test]
    fn remedies_have_commands_that_can_be_typed() {
        let mut observed = Observed::with_defaults();
        observed.flags = MeshFlags {
            nats: " --data-dir demo".into(),
            whole: " --data-dir demo".into(),
        };
        observed.consumers[0].backoff = vec![std::time::Duration::from_secs(1)];
        let found = examine(&observed);
        let backoff = found.iter().find(|one| one.id == "consumer-backoff").unwrap();
        assert!(
            backoff.remedy.contains("`herald topology apply --data-dir demo`"),
            "{backoff:?}"
        );
    }
}
