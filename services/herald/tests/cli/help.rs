//! Help, completions, manual pages, and errors that need no server.

use std::collections::BTreeSet;

use crate::run::herald;

const NOWHERE: &str = "http://127.0.0.1:1";

/// The names under `Commands:` in a help text, except `help`.
fn commands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    // Names are indented by two spaces, continued descriptions by more.
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(Into::into)
        .collect()
}

/// The path of every command, such as `["device", "add"]`, with its help text.
async fn all_commands() -> Vec<(Vec<String>, String)> {
    let mut all = Vec::new();
    let mut queue = vec![Vec::new()];
    while let Some(path) = queue.pop() {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = herald(NOWHERE, &arguments).await.ok().stdout;
        for name in commands(&help) {
            queue.push(path.iter().cloned().chain([name]).collect());
        }
        all.push((path, help));
    }
    all
}

#[tokio::test]
async fn every_command_has_help_and_examples() {
    let commands = all_commands().await;
    let paths: BTreeSet<String> = commands.iter().map(|(path, _)| path.join(" ")).collect();
    let expected = [
        "post",
        "posts list",
        "posts get",
        "delete",
        "follow",
        "unfollow",
        "following",
        "import follows",
        "device add",
        "device list",
        "device enable",
        "device rotate-secret",
        "device remove",
        "prefs get",
        "prefs set",
        "timeline",
        "watch",
        "delivery",
        "why",
        "stats",
        "dlq list",
        "dlq groups",
        "dlq show",
        "dlq redrive",
        "dlq cancel",
        "dlq discard",
        "dlq log",
        "rebuild timelines",
        "user export",
        "user erase",
        "user erasures",
        "round-trip",
        "secrets ensure",
        "topology apply",
        "topology permissions",
        "topology verify",
        "migrate",
        "backup",
        "restore",
        "recover",
        "lag",
        "top",
        "doctor",
        "push-sink",
        "completions",
        "man",
    ];
    for path in expected {
        assert!(paths.contains(path), "{path} is missing in {paths:?}");
    }
    for (path, help) in commands {
        for part in [
            "Usage: herald",
            "Examples:",
            "--server <URL>",
            "--output <FORMAT>",
            "HERALD_SERVER",
            "HERALD_OPERATOR_SERVER",
        ] {
            assert!(
                help.contains(part),
                "{part} is missing in the help of herald {}:\n{help}",
                path.join(" ")
            );
        }
        let description = help.lines().next().unwrap_or_default();
        assert!(
            description.len() > 10 && !description.starts_with("Usage"),
            "{path:?} has no description"
        );
    }
}

#[tokio::test]
async fn the_help_documents_the_exit_codes() {
    let help = herald(NOWHERE, &["--help"]).await.ok().stdout;
    for code in 0..=6 {
        assert!(help.contains(&format!("\n  {code}  ")), "{code} is missing");
    }
}

#[tokio::test]
async fn completions_have_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = herald(NOWHERE, &["completions", shell]).await.ok().stdout;
        for word in ["push-sink", "timeline", "--mutual"] {
            // Some scripts have the dashes separate from the name.
            assert!(
                script.contains(word.trim_start_matches('-')),
                "{word} is missing for {shell}"
            );
        }
    }
}

#[tokio::test]
async fn there_is_a_manual_page_for_each_command() {
    let directory = tempfile::tempdir().unwrap();
    let made = directory.path().join("man1");
    let done = herald(NOWHERE, &["man", made.to_str().unwrap(), "--output", "json"])
        .await
        .ok();
    let pages: BTreeSet<String> = made
        .read_dir()
        .unwrap()
        .map(|page| page.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(done.json()["page_count"], pages.len());
    for (path, _) in all_commands().await {
        let page = ["herald".to_owned()]
            .into_iter()
            .chain(path)
            .collect::<Vec<_>>()
            .join("-")
            + ".1";
        assert!(pages.contains(&page), "{page} is missing in {pages:?}");
    }
    let page = std::fs::read_to_string(made.join("herald-post.1")).unwrap();
    assert!(page.contains(".SH EXTRA") || page.contains("Examples:"), "{page}");
}

#[tokio::test]
async fn an_unreachable_server_is_exit_code_3() {
    for command in [
        &["post", "--author", "1", "--text", "hi"][..],
        &["timeline", "1"],
        &["watch", "1"],
        &["lag", "--watch"],
        &["delivery", "1", "--wait"],
        &["push-sink", "--listen", "127.0.0.1:0", "--register", "1"],
    ] {
        let done = herald(NOWHERE, command).await;
        assert_eq!(done.code, 3, "{done:?}");
        let option = if command[0] == "lag" {
            "--operator-server or HERALD_OPERATOR_SERVER"
        } else {
            "--server or HERALD_SERVER"
        };
        for part in [&*format!("no Herald server at {NOWHERE}"), "herald up", option] {
            assert!(done.stderr.contains(part), "{part} is missing in {done:?}");
        }
        assert_eq!(done.stdout, "");
    }
    let error = herald(NOWHERE, &["timeline", "1", "--output", "json"])
        .await
        .error();
    assert_eq!(error["kind"], "unreachable");
    assert_eq!(error["exit_code"], 3);
}

#[tokio::test]
async fn an_invalid_command_line_is_exit_code_2() {
    for arguments in [
        &["post", "--author", "1"][..],
        &["post", "--author", "1", "--text", "hi", "--lane", "urgent"],
        &["post", "--author", "1", "--text", "hi", "--push-ttl", "soon"],
        &["device", "add", "1"],
        &[
            "device",
            "add",
            "1",
            "--webhook",
            "https://a.example",
            "--web-push",
            "{}",
        ],
        &["device", "add", "1", "--web-push", "https://a.example"],
        &["device", "add", "1", "--web-push", "{\"endpoint\":1}"],
        &["device", "rotate-secret", "1", "3", "--overlap", "soon"],
        &["prefs", "set", "1"],
        &["delivery", "1", "--state", "dead"],
        &["delivery", "x"],
        &["import", "follows", "a", "--notify", "200%"],
        &["push-sink", "--listen", "127.0.0.1:0", "--fail-first", "1"],
        &["timeline", "1", "--server", "https://a.example/path"],
        &["dlq", "redrive"],
        &["dlq", "redrive", "--all", "5"],
        &["dlq", "redrive", "0"],
        &["dlq", "discard", "--all"],
        &["dlq", "list", "--state", "lost"],
        &["frobnicate"],
        &[],
    ] {
        let done = herald(NOWHERE, arguments).await;
        assert_eq!(done.code, 2, "{arguments:?}: {done:?}");
        assert!(!done.stderr.is_empty(), "{arguments:?}");
    }
    let error = herald(NOWHERE, &["post", "--output", "json"]).await.error();
    assert_eq!(error["kind"], "usage");
    assert!(error["message"].as_str().unwrap().contains("--author"), "{error}");
}

#[tokio::test]
async fn a_port_without_grpc_is_reported() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
        }
    });
    let done = herald(&server, &["timeline", "1"]).await;
    assert_eq!(done.code, 3, "{done:?}");
    assert!(done.stderr.contains("gRPC port"), "{done:?}");
}

#[tokio::test]
async fn the_help_of_config_names_the_commands_that_read_it() {
    let help = herald(NOWHERE, &["up", "--help"]).await.ok().stdout;
    let (_, config) = help.split_once("--config <FILE>").unwrap();
    for command in ["up", "serve", "config", "migrate", "backup", "restore", "recover"] {
        assert!(config.contains(&format!("`{command}`")), "{command}: {config}");
    }
}
