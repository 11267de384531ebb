//! The table of spans in docs/TRACES.md, compared with exported spans.

use std::collections::BTreeSet;

use harness::Span;

/// A row of the table in docs/TRACES.md.
struct Documented {
    names: Vec<String>,
    kinds: String,
    services: String,
    required: BTreeSet<String>,
    optional: BTreeSet<String>,
}

impl Documented {
    fn matches(&self, name: &str) -> bool {
        self.names.iter().any(|pattern| is_named(pattern, name))
    }
}

/// Whether a documented name, which can have a variable part in braces, stands for this one.
fn is_named(pattern: &str, name: &str) -> bool {
    match pattern.split_once('{') {
        Some((prefix, _)) => name.starts_with(prefix),
        None => name == pattern,
    }
}

/// The documented spans, by their names in the first column.
fn documented() -> Vec<Documented> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/TRACES.md");
    let text = std::fs::read_to_string(path).expect("docs/TRACES.md");
    let (_, table) = text.split_once("## Spans").expect("a heading");
    let quoted = |cell: &str| -> Vec<String> {
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(ToOwned::to_owned)
            .collect()
    };
    let mut rows: Vec<Documented> = Vec::new();
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [names, kinds, services, attributes] = cells[..] else {
            panic!("{line}")
        };
        let (mut required, mut optional) = (BTreeSet::new(), BTreeSet::new());
        let mut rest = attributes;
        if let Some(other) = attributes.strip_prefix("as `") {
            let (other, own) = other.split_once('`').expect("a name");
            let row = rows.iter().find(|row| row.matches(other)).expect("a row above");
            required.clone_from(&row.required);
            optional.clone_from(&row.optional);
            rest = own;
        }
        for part in rest.split_inclusive(['?', ',', ';']) {
            for name in quoted(part) {
                if part.ends_with('?') {
                    required.remove(&name);
                    optional.insert(name);
                } else {
                    required.insert(name);
                }
            }
        }
        rows.push(Documented {
            names: quoted(names),
            kinds: kinds.to_owned(),
            services: services.to_owned(),
            required,
            optional,
        });
    }
    assert!(rows.len() > 15, "the table of spans has {} rows", rows.len());
    rows
}

/// Every span is documented, with its kind, its service and its attributes.
pub(crate) fn assert_documented(spans: &[Span]) {
    let documented = documented();
    for span in spans {
        let exact = documented.iter().find(|row| row.names.contains(&span.name));
        let row = exact.or_else(|| documented.iter().find(|row| row.matches(&span.name)));
        let row = row.unwrap_or_else(|| panic!("{span:?} is not in docs/TRACES.md"));
        assert!(
            row.kinds.contains(span.kind),
            "{span:?}: docs/TRACES.md says {}",
            row.kinds
        );
        let is_answer = row.services.contains("the role that answers");
        assert!(
            row.services.contains(&span.service) || is_answer,
            "{span:?}: docs/TRACES.md says {}",
            row.services
        );
        let has: BTreeSet<String> = span
            .attributes
            .keys()
            .filter(|key| !key.starts_with("otel.") && !key.starts_with("@jaeger"))
            .cloned()
            .collect();
        let missing: Vec<_> = row.required.difference(&has).collect();
        assert!(missing.is_empty(), "{span:?} lacks {missing:?} of docs/TRACES.md");
        let known: BTreeSet<_> = row.required.union(&row.optional).cloned().collect();
        let unknown: Vec<_> = has.difference(&known).collect();
        assert!(
            unknown.is_empty(),
            "{unknown:?} of {span:?} are not in docs/TRACES.md"
        );
    }
}

/// What docs/TRACES.md documents and none of the spans is: names with their kinds.
pub(crate) fn unseen(spans: &[Span]) -> Vec<String> {
    let mut unseen = Vec::new();
    for row in documented() {
        for (name, kind) in row
            .names
            .iter()
            .flat_map(|name| row.kinds.split(", ").map(move |kind| (name, kind)))
        {
            let is_seen = |span: &Span| span.kind == kind && is_named(name, &span.name);
            if !spans.iter().any(is_seen) {
                unseen.push(format!("{kind} span {name}"));
            }
        }
    }
    unseen
}
