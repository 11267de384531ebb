//! Checks by helm, by kubeconform, and by the API server of a cluster.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use crate::{
    golden::cases,
    helm::{Helm, Input, Objects, program},
};

#[test]
fn helm_lint_finds_nothing() {
    let Some(helm) = Helm::find() else { return };
    let text = helm.run("lint", &["--strict", "--kube-version", "1.34.0"]);
    assert!(text.contains("0 chart(s) failed"), "{text}");
    if let Some(helm_3) = Helm::find_3() {
        helm_3.run("lint", &["--strict", "--kube-version", "1.34.0"]);
    }
}

/// kubeconform needs the schemas of the API: `KUBECONFORM_SCHEMAS` says where they are, as its `-schema-location` does.
#[test]
fn the_objects_match_the_schemas_of_the_api() {
    let (Some(helm), Some(kubeconform)) = (Helm::find(), program("kubeconform")) else {
        println!(
            "SKIPPED: kubeconform is not on the PATH, so no object was compared with the schemas of the API"
        );
        return;
    };
    let Some(schemas) = std::env::var_os("KUBECONFORM_SCHEMAS") else {
        println!(
            "SKIPPED: KUBECONFORM_SCHEMAS is not set, so no object was compared with the schemas of the API"
        );
        return;
    };
    for (name, input) in cases() {
        let mut command = Command::new(&kubeconform);
        command
            .args([
                "-strict",
                "-summary",
                "-ignore-missing-schemas",
                "-schema-location",
            ])
            .arg(&schemas);
        let (succeeded, text) = with_input(&mut command, &helm.text(&input));
        assert!(succeeded, "{name}: {text}");
        assert!(
            !text.contains("Valid: 0,"),
            "{name}: there is no schema at {}: {text}",
            schemas.display()
        );
    }
}

/// A dry run on the server checks all fields, admission included, and stores nothing.
#[test]
fn the_api_server_accepts_the_objects() {
    let Some(helm) = Helm::find() else { return };
    let (Some(_), Some(kubectl)) = (std::env::var_os("KUBECONFIG"), program("kubectl")) else {
        println!(
            "SKIPPED: KUBECONFIG is not set or kubectl is not installed, so no API server checked the objects"
        );
        return;
    };
    let kinds = Command::new(&kubectl)
        .args(["api-resources", "--no-headers"])
        .output()
        .unwrap();
    let kinds = String::from_utf8(kinds.stdout).unwrap();
    let known = |kind: &str| {
        kinds
            .lines()
            .any(|line| line.split_whitespace().last() == Some(kind))
    };
    for (name, input) in cases() {
        let objects = helm.objects(&Input {
            arguments: vec!["--skip-tests", "--namespace", "default"],
            ..input
        });
        let (checked, left_out): (Vec<_>, Vec<_>) = objects
            .0
            .into_iter()
            .partition(|object| known(object["kind"].as_str().unwrap()));
        for object in &left_out {
            println!("{name}: the cluster has no {}", object["kind"]);
        }
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": &checked});
        let mut command = Command::new(&kubectl);
        command.args([
            "apply",
            "--server-side",
            "--dry-run=server",
            "--field-manager",
            "herald-tests",
            "--force-conflicts",
            "-f",
            "-",
        ]);
        let (succeeded, text) = with_input(&mut command, &list.to_string());
        assert!(succeeded, "{name}: {text}");
        assert!(!Objects(checked).0.is_empty(), "{name}");
        assert!(!text.contains("Warning"), "{name}: {text}");
    }
}

/// Runs a command with this standard input. Returns whether it succeeded, and what it printed.
fn with_input(command: &mut Command, input: &str) -> (bool, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    (done.status.success(), text)
}
