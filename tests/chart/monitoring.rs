//! The rules and dashboards in `helm/herald/files`: whether Prometheus accepts them, and whether they fit the runbook and
//! the exported metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::helm::{Helm, Input, chart, items, program, repository};

/// promtool, which comes with Prometheus. `None`, and a sentence, where there is none.
fn promtool() -> Option<PathBuf> {
    let found = program("promtool");
    if found.is_none() {
        let required =
            std::env::var_os("TESTS_REQUIRE_SERVERS").is_some_and(|value| value != *"0" && !value.is_empty());
        assert!(
            !required,
            "promtool is not on the PATH, and TESTS_REQUIRE_SERVERS is set"
        );
        // Written past the capture of the test harness, which hides what successful tests print.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: promtool is not on the PATH, so no rule was checked"
        );
    }
    found
}

/// Runs promtool with files, and returns what it prints if it fails.
fn run_promtool(promtool: &Path, arguments: &[&str], files: &[PathBuf]) {
    let mut command = Command::new(promtool);
    command.args(arguments).args(files).current_dir(repository());
    let run = command.output().unwrap();
    assert!(
        run.status.success(),
        "{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
}

/// The files of a folder, sorted by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{}", folder.display());
    files
}

fn rule_files() -> Vec<PathBuf> {
    files(&chart().join("files/rules"))
}

fn rule_tests() -> Vec<PathBuf> {
    files(&repository().join("tests/monitoring"))
}

fn yaml(file: &Path) -> Value {
    yaml_serde::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// All rules, of alerts and of recorded series.
fn rules() -> Vec<Value> {
    let files = rule_files();
    let groups = files
        .iter()
        .flat_map(|file| items(&yaml(file)["groups"]).to_vec());
    groups.flat_map(|group| items(&group["rules"]).to_vec()).collect()
}

/// The alerts by name.
fn alerts() -> BTreeMap<String, Value> {
    let alerts = rules().into_iter().filter(|rule| rule["alert"].is_string());
    alerts.map(|rule| (text(&rule["alert"]), rule)).collect()
}

/// The dashboards by the names of their files.
fn dashboards() -> BTreeMap<String, Value> {
    let files = files(&chart().join("files/dashboards"));
    let dashboards = files.iter().map(|file| {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let dashboard = serde_json::from_str(&fs::read_to_string(file).unwrap());
        (
            name,
            dashboard.unwrap_or_else(|error| panic!("{}: {error}", file.display())),
        )
    });
    dashboards.collect()
}

/// The queries of the panels of all dashboards, with the name of the dashboard and of the panel.
fn queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for (name, dashboard) in dashboards() {
        for panel in items(&dashboard["panels"]) {
            for target in items(&panel["targets"]) {
                queries.push((
                    format!("{name}: {}", text(&panel["title"])),
                    text(&target["expr"]),
                ));
            }
        }
    }
    queries
}

/// The names of metrics and of recorded series in a query.
fn names_in(query: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = query.split(|c| !is_name(c));
    let names = words.filter(|word| word.starts_with("herald_") || word.contains(":herald_"));
    names.map(str::to_owned).collect()
}

/// The labels that a query asks for, each with the metric before the braces.
fn labels_in(query: &str) -> BTreeSet<(String, String)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut labels = BTreeSet::new();
    let mut rest = query;
    while let Some((before, after)) = rest.split_once('{') {
        let metric = before.rsplit(|c| !is_name(c)).next().unwrap_or_default();
        let (inside, behind) = after.split_once('}').unwrap();
        // Outside of quotes: the even parts.
        for part in inside.split('"').step_by(2) {
            let name = part.split(|c| !is_name(c)).find(|word| !word.is_empty());
            labels.extend(name.map(|name| (metric.to_owned(), name.to_owned())));
        }
        rest = behind;
    }
    labels
}

/// The metrics in the tables of a document, by their names in the first column, with their labels: the names in backticks
/// of the third column.
fn documented(document: &str) -> BTreeMap<String, BTreeSet<String>> {
    let rows = document.lines().filter(|line| line.starts_with("| `herald_"));
    let metrics = rows.map(|row| {
        let columns: Vec<&str> = row.split(" | ").collect();
        let in_backticks = |text: &str| -> BTreeSet<String> {
            let parts = text.split('`').skip(1).step_by(2);
            parts.map(str::to_owned).collect()
        };
        let name = in_backticks(columns[0]).into_iter().next().unwrap();
        (name, in_backticks(columns.get(2).unwrap_or(&"")))
    });
    metrics.collect()
}

/// The labels of a metric, or of a part of a histogram. `None` if the metric isn't documented.
fn labels_of<'a>(
    name: &str,
    metrics: &'a BTreeMap<String, BTreeSet<String>>,
) -> Option<&'a BTreeSet<String>> {
    let parts = ["_bucket", "_sum", "_count"];
    let mut whole = parts.iter().filter_map(|part| name.strip_suffix(part));
    metrics
        .get(name)
        .or_else(|| whole.find_map(|histogram| metrics.get(histogram)))
}

#[test]
fn prometheus_accepts_the_rules() {
    let Some(promtool) = promtool() else { return };
    run_promtool(
        &promtool,
        &["check", "rules", "--lint=all", "--lint-fatal"],
        &rule_files(),
    );
}

#[test]
fn the_alerts_fire_when_they_should_and_only_then() {
    let Some(promtool) = promtool() else { return };
    run_promtool(&promtool, &["test", "rules"], &rule_tests());
}

/// Queries of dashboards are no rules, so they are checked as recorded series, with values for their variables.
#[test]
fn prometheus_accepts_the_queries_of_the_dashboards() {
    let Some(promtool) = promtool() else { return };
    let rules: Vec<Value> = queries()
        .into_iter()
        .enumerate()
        .map(|(index, (_, query))| {
            let query = query.replace("$__rate_interval", "5m").replace("$job", "herald");
            assert!(
                !query.contains('$'),
                "a variable that Grafana doesn't have: {query}"
            );
            json!({"record": format!("query:{index}"), "expr": query})
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queries.yaml");
    // JSON is YAML too.
    let groups = json!({"groups": [{"name": "queries", "rules": rules}]});
    fs::write(&file, groups.to_string()).unwrap();
    run_promtool(&promtool, &["check", "rules"], &[file]);
}

#[test]
fn each_alert_says_how_urgent_it_is_and_what_to_do() {
    for (name, alert) in alerts() {
        assert!(name.starts_with("Herald"), "{name}");
        let severity = text(&alert["labels"]["severity"]);
        assert!(
            ["page", "ticket"].contains(&severity.as_str()),
            "{name}: {severity}"
        );
        assert!(alert["for"].is_string(), "{name} has no `for`");
        for annotation in ["summary", "description"] {
            assert!(
                alert["annotations"][annotation].is_string(),
                "{name}: {annotation}"
            );
        }
        let section = format!("docs/RUNBOOK.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook_url"], section, "{name}");
    }
}

#[test]
fn each_alert_has_a_section_in_the_runbook_and_each_section_an_alert() {
    let runbook = fs::read_to_string(repository().join("docs/RUNBOOK.md")).unwrap();
    let sections: Vec<&str> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    let alerts = alerts();
    let unique: BTreeSet<String> = sections.iter().map(|&section| section.to_owned()).collect();
    assert_eq!(unique.len(), sections.len(), "a section is there twice");
    assert_eq!(unique, alerts.keys().cloned().collect());
}

#[test]
fn each_alert_has_a_test_that_fires_it_and_one_that_does_not() {
    let mut fires = BTreeSet::new();
    let mut silent = BTreeSet::new();
    for file in rule_tests() {
        for test in items(&yaml(&file)["tests"]) {
            for case in items(&test["alert_rule_test"]) {
                let cases = if items(&case["exp_alerts"]).is_empty() {
                    &mut silent
                } else {
                    &mut fires
                };
                cases.insert(text(&case["alertname"]));
            }
        }
    }
    let alerts: BTreeSet<String> = alerts().into_keys().collect();
    assert_eq!(fires, alerts, "alerts that a test in tests/monitoring fires");
    assert_eq!(
        silent, alerts,
        "alerts that a test in tests/monitoring expects not to fire"
    );
}

/// Labels that Prometheus gives to each series, and the one of a histogram.
const LABELS_OF_ALL: [&str; 4] = ["namespace", "job", "instance", "le"];

#[test]
fn rules_and_dashboards_use_exported_metrics() {
    let metrics = fs::read_to_string(repository().join("docs/METRICS.md")).unwrap();
    let metrics = documented(&metrics);
    let recorded: BTreeSet<String> = rules().iter().map(|rule| text(&rule["record"])).collect();
    let of_rules = rules()
        .into_iter()
        .map(|rule| (text(&rule["alert"]) + &text(&rule["record"]), text(&rule["expr"])));
    for (place, query) in of_rules.chain(queries()) {
        let names = names_in(&query);
        assert!(!names.is_empty(), "{place} names no metric of Herald: {query}");
        for name in names {
            assert!(
                labels_of(&name, &metrics).is_some() || recorded.contains(&name),
                "{place}: {name} is not in docs/METRICS.md"
            );
        }
        for (name, label) in labels_in(&query) {
            let known = labels_of(&name, &metrics).is_none_or(|labels| labels.contains(&label));
            assert!(
                known || LABELS_OF_ALL.contains(&label.as_str()),
                "{place}: {name} has no label {label} in docs/METRICS.md"
            );
        }
    }
}

#[test]
fn metrics_and_labels_that_are_not_exported_are_noticed() {
    let metrics = documented(
        "| `herald_wait_seconds` | histogram |  | Time |\n\
         | `herald_posts_total` | counter | `lane`: high; `code`: ok | Posts |\n",
    );
    assert_eq!(
        labels_of("herald_wait_seconds_bucket", &metrics),
        Some(&BTreeSet::new())
    );
    let labels = ["lane", "code"].map(str::to_owned).into();
    assert_eq!(labels_of("herald_posts_total", &metrics), Some(&labels));
    assert_eq!(labels_of("herald_wait", &metrics), None);
    assert_eq!(labels_of("herald_post_total", &metrics), None);
    let query = "sum by (le) (rate(herald_a_total{job=~\"herald_b\", lane!=\"x, y\"}[5m])) \
                 / job:herald_c:max{le=\"1\"}";
    assert_eq!(
        names_in(query),
        ["herald_a_total", "herald_b", "job:herald_c:max"]
            .map(str::to_owned)
            .into()
    );
    let labels = [
        ("herald_a_total", "job"),
        ("herald_a_total", "lane"),
        ("job:herald_c:max", "le"),
    ];
    let labels = labels.map(|(metric, label)| (metric.to_owned(), label.to_owned()));
    assert_eq!(labels_in(query), labels.into());
}

#[test]
fn the_dashboards_are_complete() {
    for (name, dashboard) in dashboards() {
        assert_eq!(dashboard["uid"], format!("herald-{name}"));
        let variables = items(&dashboard["templating"]["list"]).iter();
        let variables: Vec<&Value> = variables.map(|variable| &variable["name"]).collect();
        assert_eq!(variables, ["datasource", "job"], "{name}");
        let panels = items(&dashboard["panels"]);
        let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{name}: two panels have one id");
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            let place = format!("{name}: {}", text(&panel["title"]));
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{place}");
            assert!(
                !text(&panel["fieldConfig"]["defaults"]["unit"]).is_empty(),
                "{place}: no unit"
            );
            let targets = items(&panel["targets"]);
            assert!(!targets.is_empty(), "{place}: no query");
            let references: BTreeSet<String> = targets.iter().map(|target| text(&target["refId"])).collect();
            assert_eq!(
                references.len(),
                targets.len(),
                "{place}: two queries have one refId"
            );
        }
    }
    for (title, query) in queries() {
        assert!(
            query.contains("job=~\"$job\""),
            "{title}: of all installations: {query}"
        );
    }
}

#[test]
fn the_chart_makes_a_rule_object_with_links_to_the_runbook() {
    let Some(helm) = Helm::find() else { return };
    let values = "metrics: {rules: {enabled: true, labels: {release: prometheus}, \
                  runbookUrl: \"https://docs.example/runbook\"}}";
    let objects = helm.objects(&Input::values(values));
    let object = objects.get("PrometheusRule", "herald");
    assert_eq!(object["metadata"]["labels"]["release"], "prometheus");
    let groups = items(&object["spec"]["groups"]).iter();
    let rendered: Vec<Value> = groups.flat_map(|group| items(&group["rules"]).to_vec()).collect();
    let mut expected = rules();
    for rule in &mut expected {
        if let Some(url) = rule["annotations"]["runbook_url"].as_str() {
            let url = url.replace("docs/RUNBOOK.md", "https://docs.example/runbook");
            rule["annotations"]["runbook_url"] = url.into();
        }
    }
    assert_eq!(rendered, expected);
    let default = helm.objects(&Input::values("metrics: {rules: {enabled: true}}"));
    let first = &default.get("PrometheusRule", "herald")["spec"]["groups"][0];
    assert_eq!(first, &yaml(&rule_files()[0])["groups"][0]);
}

#[test]
fn the_chart_makes_a_config_map_of_each_dashboard() {
    let Some(helm) = Helm::find() else { return };
    let values = "metrics: {dashboards: {enabled: true, annotations: {grafana_folder: Herald}}}";
    let objects = helm.objects(&Input::values(values));
    for (name, dashboard) in dashboards() {
        let object = objects.get("ConfigMap", &format!("herald-dashboard-{name}"));
        assert_eq!(object["metadata"]["labels"]["grafana_dashboard"], "1");
        assert_eq!(object["metadata"]["annotations"]["grafana_folder"], "Herald");
        let data = text(&object["data"][format!("herald-{name}.json")]);
        assert_eq!(serde_json::from_str::<Value>(&data).unwrap(), dashboard);
    }
}
