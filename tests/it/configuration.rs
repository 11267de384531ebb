//! The configuration tables of the READMEs list every key with the default of the code.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use harness::run_json;
use serde_json::Value;

use crate::HERALD;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A row of a configuration table. The columns are key, default and meaning.
#[derive(Debug)]
struct Row {
    file: String,
    line: usize,
    /// Dotted path; the segment `*` matches any segment.
    key: String,
    default: String,
}

/// Defaults by key.
type Defaults = BTreeMap<String, Value>;

fn flatten(prefix: &str, value: Value, into: &mut Defaults) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let key = if prefix.is_empty() {
                    name
                } else {
                    format!("{prefix}.{name}")
                };
                flatten(&key, value, into);
            }
        }
        leaf => {
            into.insert(prefix.to_owned(), leaf);
        }
    }
}

async fn defaults() -> Defaults {
    let mut defaults = Defaults::new();
    flatten(
        "",
        run_json(HERALD, &["config", "print", "--output", "json"], &[]).await,
        &mut defaults,
    );
    defaults
}

/// A default as the tables show it: with the unit from the key's name.
fn format_default(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "unset".into(),
        Value::String(text) if text.is_empty() => "empty".into(),
        Value::Array(items) if items.is_empty() => "empty".into(),
        Value::String(text) => format!("`{text}`"),
        Value::Number(number) => {
            let number = number
                .as_u64()
                .expect("configuration has only non-negative integers");
            let name = key.rsplit('.').next().unwrap_or(key);
            let unit = name.split('_').find_map(|word| match word {
                "ms" => Some(" ms"),
                "seconds" => Some(" s"),
                "hours" => Some(" hours"),
                "days" => Some(" days"),
                "bytes" => Some(" bytes"),
                "mb" => Some(" MiB"),
                "percent" => Some("%"),
                _ => None,
            });
            match unit {
                Some(" bytes") if number > 0 && number.is_multiple_of(1 << 20) => {
                    format!("{} MiB", group_digits(number >> 20))
                }
                unit => group_digits(number) + unit.unwrap_or_default(),
            }
        }
        other => format!("`{other}`"),
    }
}

fn group_digits(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(String::from_utf8_lossy)
        .collect();
    groups.join(",")
}

/// Rows of the configuration tables in a Markdown file. A heading like `` ## Configuration (`push.…`) `` sets the
/// prefix of the keys below it.
fn parse_rows(file: &str, markdown: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut prefix = String::new();
    let mut in_table = false;
    for (line, text) in (1..).zip(markdown.lines()) {
        if text.starts_with('#') {
            let start = text.split_once("(`").and_then(|(_, rest)| rest.split_once("…`)"));
            prefix = start.map_or_else(String::new, |(start, _)| start.to_owned());
        }
        let Some(cells) = text.strip_prefix('|') else {
            in_table = false;
            continue;
        };
        let mut cells = cells.split('|').map(str::trim);
        let (first, second) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        if second == "default" {
            in_table = true;
        } else if in_table && !first.starts_with("---") {
            rows.push(Row {
                file: file.to_owned(),
                line,
                key: format!("{prefix}{}", first.trim_matches('`')),
                default: second.to_owned(),
            });
        }
    }
    rows
}

/// Whether the key of a row, which may have `*` segments, matches a key.
fn key_matches(row: &str, key: &str) -> bool {
    let (row, key): (Vec<_>, Vec<_>) = (row.split('.').collect(), key.split('.').collect());
    row.len() == key.len() && row.iter().zip(&key).all(|(row, key)| row == key || *row == "*")
}

/// The README that must document a key: that of the service, else that of `herald`.
fn expected_page(key: &str, files: &BTreeSet<String>) -> String {
    let section = key.split('.').next().unwrap_or(key);
    let own = format!("services/{section}/README.md");
    if files.contains(&own) {
        own
    } else {
        "services/herald/README.md".into()
    }
}

/// Differences between the tables and the defaults.
fn find_differences(rows: &[Row], files: &BTreeSet<String>, defaults: &Defaults) -> Vec<String> {
    let mut found = Vec::new();
    for row in rows {
        let keys: Vec<_> = defaults
            .iter()
            .filter(|(key, _)| key_matches(&row.key, key))
            .collect();
        // A row with the exact key overrides a row with `*`.
        let keys = keys
            .into_iter()
            .filter(|(key, _)| row.key == **key || !rows.iter().any(|other| other.key == **key))
            .collect::<Vec<_>>();
        let at = format!("{}:{}: {}", row.file, row.line, row.key);
        if keys.is_empty() {
            found.push(format!("{at}: unknown key"));
        }
        for (key, value) in keys {
            let default = format_default(key, value);
            if row.default != default {
                found.push(format!(
                    "{at}: the default of {key} is {default}, not {}",
                    row.default
                ));
            }
        }
    }
    for key in defaults.keys() {
        let page = expected_page(key, files);
        let exact = rows.iter().filter(|row| row.key == *key).count();
        let here = rows
            .iter()
            .any(|row| row.file == page && key_matches(&row.key, key));
        if exact > 1 {
            found.push(format!("{key}: documented by {exact} rows"));
        }
        if !here {
            let default = format_default(key, &defaults[key]);
            found.push(format!("{page}: add a row for {key}, default {default}"));
        }
    }
    found
}

/// Quoted key names in a text, like `` `store.ledger_keep_days` ``, that the configuration doesn't have.
fn unknown_mentions(markdown: &str, defaults: &Defaults) -> Vec<String> {
    let sections: BTreeSet<_> = defaults
        .keys()
        .filter_map(|key| Some(key.split_once('.')?.0))
        .collect();
    let quoted = markdown.split('`').skip(1).step_by(2);
    let keys = quoted
        .filter_map(|text| text.split_whitespace().next())
        .filter(|name| {
            let mut segments = name.split('.');
            let section = segments.next().is_some_and(|first| sections.contains(first));
            let second = segments.next().unwrap_or("v1");
            let is_key_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._*".contains(c);
            section && !["v1", "rs", "*", ""].contains(&second) && name.chars().all(is_key_char)
        });
    let known = |name: &str| {
        defaults.keys().any(|key| {
            let part: Vec<_> = key.split('.').take(name.split('.').count()).collect();
            key_matches(name, &part.join("."))
        })
    };
    keys.filter(|name| !known(name)).map(str::to_owned).collect()
}

/// All Markdown pages by their path from the root.
fn read_pages() -> BTreeMap<String, String> {
    fn add(folder: &Path, pages: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add(&path, pages);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
                pages.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut pages = BTreeMap::new();
    for folder in ["services", "crates", "docs", "examples"] {
        add(&PathBuf::from(ROOT).join(folder), &mut pages);
    }
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        pages.insert(
            name.into(),
            std::fs::read_to_string(PathBuf::from(ROOT).join(name)).unwrap(),
        );
    }
    pages
}

#[tokio::test]
async fn tables_match_the_defaults() {
    let (pages, defaults) = (read_pages(), defaults().await);
    let rows: Vec<_> = pages
        .iter()
        .flat_map(|(file, text)| parse_rows(file, text))
        .collect();
    let files = pages.keys().cloned().collect();
    let mut found = find_differences(&rows, &files, &defaults);
    for (file, text) in &pages {
        let unknown = unknown_mentions(text, &defaults);
        found.extend(unknown.iter().map(|key| format!("{file}: unknown key {key}")));
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn a_wrong_table_is_found() {
    let mut defaults = Defaults::new();
    let config = serde_json::json!({
        "port": 1,
        "push": { "wait_ms": 5_000, "sends_max": 512, "key": null, "lane": { "high": 2, "low": 2, "none": 0 } },
    });
    flatten("", config, &mut defaults);
    let right = "## Configuration (`push.…`)\n| key | default | |\n|---|---|---|\n| `wait_ms` | 5,000 ms | why |\n\
                 | `sends_max` | 512 | |\n| `key` | unset | |\n| `lane.*` | 2 | |\n| `lane.none` | 0 | |\n";
    let herald = parse_rows(
        "services/herald/README.md",
        "## Configuration\n| key | default |\n|---|---|\n| `port` | 1 |\n",
    );
    let files = ["services/push/README.md", "services/herald/README.md"]
        .map(String::from)
        .into();
    let found = |table: &str| {
        let mut rows = parse_rows("services/push/README.md", table);
        rows.extend(herald.iter().map(|row| Row {
            file: row.file.clone(),
            line: row.line,
            key: row.key.clone(),
            default: row.default.clone(),
        }));
        find_differences(&rows, &files, &defaults)
    };
    assert_eq!(found(right), [""; 0]);
    for (from, to, what) in [
        (
            "5,000 ms",
            "4,000 ms",
            "the default of push.wait_ms is 5,000 ms, not 4,000 ms",
        ),
        (
            "5,000 ms",
            "5,000 s",
            "the default of push.wait_ms is 5,000 ms, not 5,000 s",
        ),
        ("| 512 |", "| |", "the default of push.sends_max is 512, not "),
        ("| `sends_max` | 512 | |\n", "", "add a row for push.sends_max"),
        ("`key`", "`keys`", "push.keys: unknown key"),
        (
            "| `lane.none` | 0 | |\n",
            "",
            "push.lane.*: the default of push.lane.none is 0, not 2",
        ),
        (
            "`lane.none` | 0",
            "`lane.*` | 0",
            "the default of push.lane.high is 2, not 0",
        ),
        (
            "| `key`",
            "| `sends_max` | 512 | |\n| `key`",
            "push.sends_max: documented by 2 rows",
        ),
        ("push.…", "pull.…", "add a row for push.wait_ms"),
    ] {
        assert!(right.contains(from), "{from}");
        let found = found(&right.replace(from, to));
        assert!(found.iter().any(|line| line.contains(what)), "{to}: {found:?}");
    }
}

#[test]
fn an_unknown_key_in_a_text_is_found() {
    let defaults = [
        ("push.wait_ms".to_owned(), Value::Null),
        ("push.lane.high".to_owned(), Value::Null),
    ]
    .into();
    let text = "`push.wait_ms = 1`, `push.lane`, `push.*.high`, `push.v1.deliver`, `push.rs`, `push.wait_s`, `other.x`";
    assert_eq!(unknown_mentions(text, &defaults), ["push.wait_s"]);
}
