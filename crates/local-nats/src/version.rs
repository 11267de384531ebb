//! Versions of nats-server.

use std::fmt;

/// The oldest supported version.
pub(crate) const OLDEST: Version = Version {
    major: 2,
    minor: 11,
    patch: 0,
};

/// A version of nats-server, without a pre-release suffix such as `-RC.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Patch version.
    pub patch: u32,
}

impl Version {
    /// Parses `2.15.2`, `v2.15.2` or `2.15.2-RC.1`; `None` for other text.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut numbers = text.split(['-', '+']).next()?.split('.').map(str::parse);
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => Some(Self { major, minor, patch }),
            _ => None,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_and_compared() {
        let version = |text| Version::parse(text).unwrap();
        assert_eq!(
            version("v2.15.2"),
            Version {
                major: 2,
                minor: 15,
                patch: 2
            }
        );
        assert_eq!(version("2.11.0-RC.1"), OLDEST);
        assert!(version("2.9.25") < OLDEST);
        assert!(version("2.100.0") > version("2.15.2"));
        for nonsense in ["", "2", "2.15", "2.15.2.1", "v", "two"] {
            assert_eq!(Version::parse(nonsense), None, "{nonsense}");
        }
    }
}
