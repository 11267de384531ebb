//! The trigger of a ScaledObject: what it asks for.

use std::collections::BTreeMap;

use herald_model::Lane;

use super::{Role, Scope};

/// The key of the target.
const TARGET_SECONDS: &str = "targetSeconds";
const KEYS: [&str; 3] = ["role", "lane", TARGET_SECONDS];

/// What a trigger asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Trigger {
    pub(crate) scope: Scope,
    /// The time in which pending work shall be done, seconds.
    pub(crate) target_seconds: f64,
}

/// A key of the metadata that is missing or invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) key: String,
    pub(crate) description: String,
}

impl Trigger {
    /// Parses the metadata of a trigger. Keys of KEDA, such as `scalerAddress`, are ignored; those that look like a
    /// misspelled key of Herald are refused, because without it a trigger would scale by other work than was meant.
    pub(crate) fn parse(metadata: &BTreeMap<String, String>, target_seconds: f64) -> Result<Self, Violation> {
        for key in metadata.keys() {
            let meant = KEYS.into_iter().find(|known| letters(known) == letters(key));
            if let Some(meant) = meant.filter(|meant| meant != key) {
                return Err(violation(key, format!("is not known: use {meant}")));
            }
        }
        let value = |key: &str| metadata.get(key).map_or("", |value| value.trim());
        let role: Role = match value("role") {
            "" => {
                return Err(violation(
                    "role",
                    "must be one of fanout, timeline, push, archive, analytics",
                ));
            }
            name => name
                .parse()
                .map_err(|error| violation("role", format!("must be known: {error}")))?,
        };
        let lane = match value("lane") {
            "" => None,
            name => {
                let lane: Lane = name.parse().map_err(|error| {
                    violation("lane", format!("must be known, or empty for all lanes: {error}"))
                })?;
                Some(lane)
            }
        };
        if lane.is_some() && !role.has_lanes() {
            let role = role.as_str();
            return Err(violation(
                "lane",
                format!("must be empty: role {role} has no lanes"),
            ));
        }
        let target_seconds = match value(TARGET_SECONDS) {
            "" => target_seconds,
            text => text
                .parse()
                .ok()
                .filter(|seconds| (1.0..=3_600.0).contains(seconds))
                .ok_or_else(|| {
                    let description = format!("must be a number of seconds from 1 to 3600, is {text:?}");
                    violation(TARGET_SECONDS, description)
                })?,
        };
        Ok(Self {
            scope: Scope { role, lane },
            target_seconds,
        })
    }

    /// Name of the metric.
    pub(crate) fn metric_name(&self) -> String {
        format!("herald-{}-seconds", self.scope)
    }
}

/// A key without what is often got wrong: case, separators, plural.
fn letters(key: &str) -> String {
    let letters = key.chars().filter(char::is_ascii_alphanumeric);
    let letters: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
    letters.trim_end_matches('s').to_owned()
}

fn violation(key: &str, description: impl Into<String>) -> Violation {
    Violation {
        key: key.into(),
        description: description.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Trigger, Violation> {
        let pairs = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Trigger::parse(&pairs.collect(), 5.0)
    }

    #[test]
    fn a_trigger_names_a_role_a_lane_and_a_target() {
        let trigger = parse(&[
            ("scalerAddress", "scaler:7700"),
            ("role", "push"),
            ("lane", "high"),
            ("targetSeconds", "2.5"),
        ])
        .unwrap();
        assert_eq!(trigger.metric_name(), "herald-push-high-seconds");
        assert!((trigger.target_seconds - 2.5).abs() < f64::EPSILON);
        let trigger = parse(&[("role", "archive"), ("lane", "")]).unwrap();
        assert_eq!(trigger.metric_name(), "herald-archive-all-seconds");
        assert!((trigger.target_seconds - 5.0).abs() < f64::EPSILON);
    }

    #[test]
    fn an_invalid_key_is_named() {
        for (pairs, key, part) in [
            (&[][..], "role", "must be one of"),
            (&[("role", "graph")][..], "role", "\"graph\" is not one of fanout"),
            (
                &[("role", "push"), ("lane", "urgent")][..],
                "lane",
                "\"urgent\" is not one of high",
            ),
            (
                &[("role", "archive"), ("lane", "low")][..],
                "lane",
                "role archive has no lanes",
            ),
            (&[("role", "push"), ("lanes", "low")][..], "lanes", "use lane"),
            (
                &[("role", "push"), ("target_seconds", "5")][..],
                "target_seconds",
                "use targetSeconds",
            ),
        ] {
            let violation = parse(pairs).unwrap_err();
            assert_eq!(violation.key, key);
            assert!(violation.description.contains(part), "{violation:?}");
        }
        for target in ["0", "-1", "3601", "NaN", "inf", "5s", "0x5"] {
            let violation = parse(&[("role", "push"), ("targetSeconds", target)]).unwrap_err();
            assert_eq!(violation.key, "targetSeconds", "{target}");
        }
    }
}
