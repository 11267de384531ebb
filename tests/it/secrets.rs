//! Secrets of the configuration are in no output: not in the printed configuration, in no error, and not in the log.

use harness::{Output, run, run_json};
use serde_json::Value;

use crate::HERALD;

/// The settings that can hold a secret, each with a value that has `hunter2` in its secret part.
const SECRETS: [(&str, &str); 14] = [
    ("nats.url", "nats://me:hunter2@127.0.0.1:1"),
    ("nats.password", "hunter2"),
    ("nats.token", "hunter2"),
    ("nats.nkey_seed", "hunter2"),
    ("nats.credentials", "hunter2"),
    (
        "store.url",
        "postgres://me:hunter2@127.0.0.1:1/herald?password=hunter2",
    ),
    ("timelines.url", "redis://me:hunter2@127.0.0.1:1"),
    ("telemetry.otlp", "http://me:hunter2@127.0.0.1:1"),
    ("peers.graph", "http://me:hunter2@127.0.0.1:1"),
    ("peers.analytics", "http://me:hunter2@127.0.0.1:1"),
    ("push.vapid_private_key", "hunter2"),
    (
        "store.encryption.key",
        "hunter2AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ),
    (
        "store.encryption.previous_keys",
        "hunter2BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ),
    ("auth.root_key", "hunter2-hunter2-hunter2-hunter2-hunter2"),
];

/// A setting with such a word in its name is a secret, or listed here because it is none.
const SECRET_WORDS: [&str; 7] = [
    "url",
    "password",
    "token",
    "seed",
    "credentials",
    "secret",
    "private",
];
const NO_SECRETS: [&str; 3] = [
    "gateway.endpoints.allow_private",
    "push.endpoints.allow_private",
    // With a user or password it is refused.
    "auth.jwt.jwks_url",
];

/// The environment variable of a setting.
fn variable(key: &str) -> String {
    format!("HERALD_{}", key.to_uppercase().replace('.', "__"))
}

async fn run_with(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let names: Vec<String> = settings.iter().map(|(key, _)| variable(key)).collect();
    let variables: Vec<_> = names
        .iter()
        .map(String::as_str)
        .zip(settings.iter().map(|(_, value)| *value))
        .collect();
    run(HERALD, arguments, &variables).await
}

fn check_hidden(what: &str, output: &Output) {
    for text in [&output.stdout, &output.stderr] {
        assert!(!text.contains("hunter2"), "{what} shows a secret: {text}");
    }
}

#[tokio::test]
async fn a_printed_configuration_hides_all_secrets_and_nothing_else() {
    // A peer with a password is refused, and so are several kinds of credentials.
    let is_kind = |key: &str| key.starts_with("nats.");
    let settings = SECRETS
        .into_iter()
        .filter(|(key, _)| !key.starts_with("peers.") && !is_kind(key));
    let settings: Vec<_> = settings.collect();
    let kinds = SECRETS.into_iter().filter(|(key, _)| is_kind(key));
    for (format, kind) in kinds.flat_map(|kind| [("text", kind), ("json", kind)]) {
        let user = if kind.0 == "nats.password" { "me" } else { "" };
        let settings = [&settings[..], &[kind, ("nats.user", user)]].concat();
        let printed = run_with(&["config", "print", "--output", format], &settings).await;
        assert_eq!(printed.code, 0, "{}", printed.stderr);
        check_hidden(format, &printed);
        if kind.0 == "nats.url" {
            let shown = "nats://me:[hidden]@127.0.0.1:1";
            assert!(printed.stdout.contains(shown), "{}", printed.stdout);
        }
        for shown in [
            "postgres://me:[hidden]@127.0.0.1:1/herald?password=[hidden]",
            "redis://me:[hidden]@127.0.0.1:1",
            "http://me:[hidden]@127.0.0.1:1",
        ] {
            assert!(printed.stdout.contains(shown), "{shown}: {}", printed.stdout);
        }
    }
}

/// Fails when a setting is added that looks like a secret and is not in [`SECRETS`].
#[tokio::test]
async fn all_settings_that_can_hold_a_secret_are_tested() {
    fn collect(prefix: &str, value: &Value, keys: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    collect(&format!("{prefix}{dot}{name}"), value, keys);
                }
            }
            _ => keys.push(prefix.to_owned()),
        }
    }
    let mut keys = Vec::new();
    let printed = run_json(HERALD, &["config", "print", "--output", "json"], &[]).await;
    collect("", &printed, &mut keys);
    for key in keys {
        let name = key.rsplit('.').next().unwrap_or_default();
        let is_secret = name.split('_').any(|word| SECRET_WORDS.contains(&word));
        let is_known = SECRETS.iter().any(|(secret, _)| *secret == key) || NO_SECRETS.contains(&key.as_str());
        assert!(!is_secret || is_known, "{key} is in neither list");
    }
}

#[tokio::test]
async fn errors_about_settings_show_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().to_str().unwrap();
    let all = run_with(&["config", "check", "--data-dir", data_dir], &SECRETS).await;
    assert_ne!(all.code, 0, "several kinds of credentials are refused");
    check_hidden("all", &all);
    for (key, value) in SECRETS {
        // Malformed in each case.
        for value in [
            value.to_owned(),
            value.replace("127.0.0.1:1", "[::"),
            value.replace("://", ":/"),
        ] {
            let checked = run_with(&["config", "check", "--data-dir", data_dir], &[(key, &value)]).await;
            check_hidden(key, &checked);
            // A value of the wrong type.
            let nested = format!("{key}.more");
            let checked = run_with(&["config", "check", "--data-dir", data_dir], &[(&nested, &value)]).await;
            assert_ne!(checked.code, 0, "{nested}");
            check_hidden(&nested, &checked);
        }
    }
}

#[tokio::test]
async fn errors_about_a_file_that_is_not_toml_show_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (file, data_dir) = (dir.path().join("herald.toml"), dir.path().join("data"));
    let (path, data_dir) = (file.to_str().unwrap(), data_dir.to_str().unwrap());
    for value in ["hunter2", "\"hunter2", "'hunter2", "\"hunter2\" hunter2"] {
        std::fs::write(&file, format!("[nats]\npassword = {value}\n")).unwrap();
        for command in [&["config", "check"] as &[_], &["config", "print"], &["up"]] {
            let arguments = [command, &["--config", path, "--data-dir", data_dir]].concat();
            let refused = run(HERALD, &arguments, &[]).await;
            assert_eq!(refused.code, 2, "{refused:?}");
            let start = format!("error: {path}: is not TOML: line 2, column ");
            assert!(refused.stderr.starts_with(&start), "{refused:?}");
            check_hidden(value, &refused);
        }
    }
}

#[tokio::test]
async fn a_url_whose_password_is_not_percent_encoded_is_refused_without_it() {
    for (key, url) in [
        ("store.url", "postgres://me:p@ss#hunter2@127.0.0.1:1/x"),
        ("timelines.url", "redis://me:p/hunter2@127.0.0.1:1"),
        ("nats.url", "nats://127.0.0.1:1,nats://me:p?hunter2@127.0.0.1:2"),
    ] {
        for arguments in [["config", "check"], ["config", "print"]] {
            let refused = run_with(&arguments, &[(key, url)]).await;
            assert_eq!(refused.code, 2, "{refused:?}");
            let start = format!("error: {} in the environment: has an @ ", variable(key));
            assert!(
                refused.stderr.starts_with(&start) && refused.stderr.contains("%40"),
                "{refused:?}"
            );
            check_hidden(key, &refused);
        }
    }
}

#[tokio::test]
async fn a_start_logs_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().to_str().unwrap();
    let settings: Vec<_> = SECRETS
        .into_iter()
        .filter(|(key, _)| {
            ![
                "nats.nkey_seed",
                "nats.credentials",
                "nats.token",
                "nats.password",
            ]
            .contains(key)
        })
        .filter(|(key, _)| *key != "push.vapid_private_key" && !key.starts_with("peers."))
        .collect();
    for role in ["graph", "gateway", "timeline", "push"] {
        let arguments = [
            "serve",
            role,
            "--data-dir",
            data_dir,
            "--log",
            "debug",
            "--grpc",
            "127.0.0.1:0",
            "--operator-grpc",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
        ];
        let started = run_with(&arguments, &settings).await;
        assert_ne!(started.code, 0, "nothing listens on port 1: {}", started.stdout);
        check_hidden(role, &started);
    }
}
