//! Tests of the merged layers.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Layer, Loader, Secret, print};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    name: String,
    lanes: Vec<String>,
    push: Push,
    nats: Nats,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Push {
    workers: u16,
    key: Option<String>,
    secret: Secret,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Nats {
    url: String,
    tls: bool,
}

impl Default for Config {
    fn default() -> Self {
        let push = Push {
            workers: 8,
            key: None,
            secret: Secret::new("built in"),
        };
        Self {
            name: "herald".into(),
            lanes: vec!["high".into()],
            push,
            nats: Nats::default(),
        }
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn an_error_of_a_file_that_is_not_toml_has_none_of_its_text() {
    for text in ["[push]\nsecret = hunter2", "[push]\nsecret = \"hunter2\n"] {
        let file = file(text);
        let error = Loader::defaults()
            .file(Some(file.path()))
            .load::<Config>()
            .unwrap_err();
        let error = error.to_string();
        let start = format!("{}: is not TOML: line 2, column ", file.path().display());
        assert!(error.starts_with(&start) && !error.contains("hunter2"), "{error}");
    }
}

/// The first problem: layer, key and reason.
fn first_problem(loader: &Loader) -> (Layer, String, String) {
    let error = loader.load::<Config>().unwrap_err();
    let problem = error.problems()[0].clone();
    (problem.layer, problem.key, problem.reason)
}

#[test]
fn without_other_layers_the_defaults_are_loaded_with_their_secrets() {
    assert_eq!(Loader::defaults().load::<Config>().unwrap(), Config::default());
}

#[test]
fn each_layer_overrides_the_one_before() {
    let file = file("name = 'file'\n[push]\nworkers = 1\nkey = 'file'\n[nats]\nurl = 'file'");
    let config: Config = Loader::defaults()
        .file(Some(file.path()))
        .env([
            ("HERALD_NATS__URL", "env"),
            ("HERALD_PUSH__WORKERS", "2"),
            ("HERALD_LANES", "[a, b]"),
        ])
        .flag("push.workers", Some(3))
        .flag("nats.tls", None::<bool>)
        .load()
        .unwrap();
    assert_eq!(
        (
            config.name.as_str(),
            config.nats.url.as_str(),
            config.push.workers
        ),
        ("file", "env", 3)
    );
    assert_eq!(config.push.key.as_deref(), Some("file"));
    assert_eq!(config.lanes, ["a", "b"]);
}

#[test]
fn a_variable_is_taken_verbatim_if_the_setting_is_a_string() {
    let config: Config = Loader::defaults()
        .env([
            ("HERALD_NAME", "1"),
            ("HERALD_PUSH__KEY", "true"),
            ("HERALD_PUSH__SECRET", "007"),
        ])
        .load()
        .unwrap();
    assert_eq!(
        (config.name.as_str(), config.push.key.as_deref()),
        ("1", Some("true"))
    );
    assert_eq!(config.push.secret.expose(), "007");
}

#[test]
fn an_unknown_key_is_an_error_in_every_layer() {
    let file = file("[push]\nworker = 1");
    let (layer, key, reason) = first_problem(&Loader::defaults().file(Some(file.path())));
    assert_eq!(
        (layer, key.as_str()),
        (Layer::File(file.path().into()), "push.worker")
    );
    assert!(
        reason.ends_with("expected one of key, secret, workers"),
        "{reason}"
    );
    let (layer, key, _) = first_problem(&Loader::defaults().env([("HERALD_NATS__URI", "x")]));
    assert_eq!((layer, key.as_str()), (Layer::Environment, "nats.uri"));
    let (layer, key, _) = first_problem(&Loader::defaults().flag("names", Some("x")));
    assert_eq!((layer, key.as_str()), (Layer::Flags, "names"));
}

#[test]
fn reserved_variables_are_ignored() {
    let loader = Loader::defaults()
        .env([("HERALD_SERVER", "x"), ("HERALD_MINE", "x")])
        .reserve("HERALD_MINE");
    assert!(loader.load::<Config>().is_ok());
}

#[test]
fn service_variables_of_kubernetes_are_ignored() {
    let loader = Loader::defaults().env([
        ("HERALD_SERVICE_HOST", "10.0.0.1"),
        ("HERALD_GATEWAY_SERVICE_PORT_GRPC", "7700"),
        ("HERALD_GATEWAY_PORT", "tcp://10.0.0.1:7700"),
        ("HERALD_GATEWAY_PORT_7700_TCP", "tcp://10.0.0.1:7700"),
        ("HERALD_GATEWAY_PORT_7700_TCP_ADDR", "10.0.0.1"),
    ]);
    assert!(loader.load::<Config>().is_ok());
    assert!(
        Loader::defaults()
            .env([("HERALD_GATEWAY_PORT", "7700")])
            .load::<Config>()
            .is_err()
    );
}

#[test]
fn an_error_contains_layer_key_and_expected_type() {
    let loader = Loader::defaults().env([("HERALD_PUSH__WORKERS", "many")]);
    assert_eq!(
        loader.load::<Config>().unwrap_err().to_string(),
        "HERALD_PUSH__WORKERS in the environment: must be a whole number from 0 to 65535, is \"many\""
    );
    let (layer, key, _) = first_problem(&Loader::defaults().flag("push.workers", Some(70_000)));
    assert_eq!((layer, key.as_str()), (Layer::Flags, "push.workers"));
}

#[test]
fn an_error_of_an_element_is_one_of_its_list() {
    let file = file("lanes = ['high', 5]");
    let (_, key, reason) = first_problem(&Loader::defaults().file(Some(file.path())));
    assert_eq!(
        (key.as_str(), reason.as_str()),
        ("lanes", "element 2 must be a text, is a whole number")
    );
}

#[test]
fn an_error_omits_a_secret_of_the_wrong_type() {
    let file = file("[push]\nsecret = 12345");
    let error = Loader::defaults()
        .file(Some(file.path()))
        .load::<Config>()
        .unwrap_err();
    assert!(!error.to_string().contains("12345"), "{error}");
}

#[test]
fn an_error_contains_the_path_of_a_missing_or_malformed_file() {
    let (layer, key, _) = first_problem(&Loader::defaults().file(Some(Path::new("/nowhere/herald.toml"))));
    assert_eq!(
        (layer, key.as_str()),
        (Layer::File("/nowhere/herald.toml".into()), "")
    );
    let file = file("name = ");
    assert_eq!(
        first_problem(&Loader::defaults().file(Some(file.path()))).0,
        Layer::File(file.path().into())
    );
}

#[test]
fn a_validation_error_names_the_layer_of_its_value() {
    let invalid = |loader: Loader, reason: &'static str| {
        let error = loader.load_valid::<Config>(|_| Err(reason.into())).unwrap_err();
        error.to_string()
    };
    let file = file("[push]\nworkers = 1");
    let loader = || Loader::defaults().file(Some(file.path()));
    let reason = "push.workers must be at least 2, is 1";
    assert_eq!(
        invalid(loader(), reason),
        format!(
            "push.workers in {}: must be at least 2, is 1",
            file.path().display()
        )
    );
    assert_eq!(
        invalid(loader().env([("HERALD_PUSH__WORKERS", "1")]), reason),
        "HERALD_PUSH__WORKERS in the environment: must be at least 2, is 1"
    );
    assert_eq!(
        invalid(loader().flag("push.workers", Some(1)), reason),
        "push.workers in the flags: must be at least 2, is 1"
    );
    assert_eq!(
        invalid(Loader::defaults(), reason),
        "push.workers in the defaults: must be at least 2, is 1"
    );
    // An error about a whole section or about no setting concerns all layers.
    assert_eq!(
        invalid(loader(), "push must equal nats"),
        "push in the settings: must equal nats"
    );
    assert_eq!(
        invalid(loader(), "two settings contradict each other"),
        "the settings: two settings contradict each other"
    );
}

#[test]
fn printed_settings_lack_secrets_and_can_be_loaded_without_the_placeholders() {
    let text = print(&Config::default()).unwrap();
    assert!(
        text.contains("secret = \"[hidden]\"") && !text.contains("built in"),
        "{text}"
    );
    let printed = file(&text);
    let (layer, key, reason) = first_problem(&Loader::defaults().file(Some(printed.path())));
    assert_eq!(
        (layer, key.as_str()),
        (Layer::File(printed.path().into()), "push.secret")
    );
    assert!(reason.contains("placeholder"), "{reason}");

    let config: Config = Loader::defaults()
        .file(Some(printed.path()))
        .env([("HERALD_PUSH__SECRET", "1")])
        .load()
        .unwrap();
    assert_eq!(config.push.workers, 8);
}

#[test]
fn a_url_with_a_redacted_password_is_refused() {
    for url in ["nats://me:[hidden]@host", "nats://[hidden]@host:1"] {
        let (layer, key, _) = first_problem(&Loader::defaults().env([("HERALD_NATS__URL", url)]));
        assert_eq!((layer, key.as_str()), (Layer::Environment, "nats.url"));
    }
    let config = Loader::defaults().env([("HERALD_NATS__URL", "nats://me:hidden@host")]);
    assert!(config.load::<Config>().is_ok());
}

#[test]
fn a_setting_can_be_in_a_file_of_its_own() {
    let secret = file("from a file\n");
    let path = secret.path().to_str().unwrap();
    let config: Config = Loader::defaults()
        .env([
            ("HERALD_PUSH__SECRET_FILE", path),
            ("HERALD_NATS__URL_FILE", path),
        ])
        .load()
        .unwrap();
    assert_eq!(config.push.secret.expose(), "from a file");
    assert_eq!(config.nats.url, "from a file");

    let toml = file(&format!("[push]\nkey_file = '{path}'"));
    let config: Config = Loader::defaults().file(Some(toml.path())).load().unwrap();
    assert_eq!(config.push.key.as_deref(), Some("from a file"));

    // A file in the environment overrides a value in the configuration file.
    let toml = file("[push]\nsecret = 'in the file'");
    let loader = Loader::defaults().file(Some(toml.path()));
    let config: Config = loader.env([("HERALD_PUSH__SECRET_FILE", path)]).load().unwrap();
    assert_eq!(config.push.secret.expose(), "from a file");
}

#[test]
fn a_file_of_a_setting_that_can_not_be_used_is_named() {
    let (layer, key, reason) =
        first_problem(&Loader::defaults().env([("HERALD_PUSH__SECRET_FILE", "/nowhere/secret")]));
    assert_eq!((layer, key.as_str()), (Layer::Environment, "push.secret_file"));
    assert!(reason.contains("/nowhere/secret"), "{reason}");

    let both = Loader::defaults().env([("HERALD_NATS__URL", "x"), ("HERALD_NATS__URL_FILE", "/nowhere")]);
    let (_, key, reason) = first_problem(&both);
    assert_eq!(key, "nats.url_file");
    assert!(reason.contains("nats.url"), "{reason}");

    // A table has no file, and an unknown key stays an error.
    let (_, key, reason) = first_problem(&Loader::defaults().env([("HERALD_NATS_FILE", "/nowhere")]));
    assert_eq!(key, "nats_file");
    assert!(reason.starts_with("unknown setting"), "{reason}");
}

#[test]
fn the_error_of_an_unknown_variable_says_what_to_do() {
    for (name, key) in [("HERALD_OTHER", "other"), ("HERALD_NATS__OTHER", "nats.other")] {
        let (layer, found, reason) = first_problem(&Loader::defaults().env([(name, "x")]));
        assert_eq!((layer, found.as_str()), (Layer::Environment, key));
        assert!(
            reason.contains("begins with HERALD_") && reason.contains("rename it"),
            "{reason}"
        );
    }
    let file = file("other = 1");
    let (_, _, reason) = first_problem(&Loader::defaults().file(Some(file.path())));
    assert!(!reason.contains("HERALD_"), "{reason}");
}

#[test]
fn an_error_about_a_value_in_a_file_of_its_own_names_the_file() {
    let value = file("nonsense\n");
    let path = value.path().to_str().unwrap();
    let expected = format!("the content of {path} must be ");
    let refused = |loader: &Loader| {
        let error = loader.load_valid::<Config>(|config| match config.push.key.as_deref() {
            Some("nonsense") => Err("push.key must be a key".into()),
            _ => Ok(()),
        });
        error.unwrap_err().problems()[0].clone()
    };
    let toml = file(&format!("[push]\nkey_file = '{path}'"));
    for loader in [
        Loader::defaults().env([("HERALD_PUSH__KEY_FILE", path)]),
        Loader::defaults().file(Some(toml.path())),
        Loader::defaults().env([("HERALD_PUSH__WORKERS_FILE", path)]),
    ] {
        let problem = refused(&loader);
        assert!(problem.key.ends_with("_file"), "{problem}");
        assert!(problem.reason.starts_with(&expected), "{problem}");
    }
    // A value beside it in another layer is named by its own key.
    let loader = Loader::defaults().file(Some(toml.path()));
    let problem = refused(&loader.env([("HERALD_PUSH__KEY", "nonsense")]));
    assert_eq!(
        problem.to_string(),
        "HERALD_PUSH__KEY in the environment: must be a key"
    );
}

#[test]
fn a_value_file_that_every_user_can_read_is_named() {
    let (open, closed) = (file("a"), file("b"));
    let chmod = |file: &tempfile::NamedTempFile, mode| {
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod(&open, 0o644);
    chmod(&closed, 0o640);
    let path = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();
    let toml = file(&format!("[push]\nkey_file = '{}'", path(&open)));
    let loader = Loader::defaults().file(Some(toml.path())).env([
        ("HERALD_PUSH__SECRET_FILE", path(&open)),
        ("HERALD_NATS__URL_FILE", path(&closed)),
    ]);
    let named: Vec<String> = loader
        .open_value_files::<Config>()
        .iter()
        .map(ToString::to_string)
        .collect();
    let reason = format!("can be read by every user of this machine: {}", path(&open));
    assert_eq!(named.len(), 2, "{named:?}");
    let starts = [
        format!("push.key_file in {}: {reason}", toml.path().display()),
        format!("HERALD_PUSH__SECRET_FILE in the environment: {reason}"),
    ];
    for (named, start) in named.iter().zip(starts) {
        assert!(named.starts_with(&start), "{named}");
    }
}
