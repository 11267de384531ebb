//! Encryption at rest of devices: the key that `herald up` makes, backups, a start without the key, and its rotation.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use harness::{Herald, Options, Output, run, run_json};
use serde_json::Value;

use crate::HERALD;

const ENDPOINT: &str = "https://hook.example.com/endpoint-of-ann";

async fn herald(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut all = arguments.to_vec();
    all.extend(["--output", "json"]);
    run(HERALD, &all, variables).await
}

/// All files of a directory, with their contents.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.symlink_metadata().unwrap().file_type() {
                kind if kind.is_dir() => dirs.push(path),
                kind if kind.is_file() => {
                    let contents = fs::read(&path).unwrap();
                    found.push((path, contents));
                }
                _ => {}
            }
        }
    }
    found
}

/// The files of a directory that have a text.
fn files_with(dir: &Path, text: &str) -> Vec<PathBuf> {
    let has = |contents: &[u8]| contents.windows(text.len()).any(|part| part == text.as_bytes());
    let with = files(dir).into_iter().filter(|(_, contents)| has(contents));
    with.map(|(path, _)| path).collect()
}

async fn add(mesh: &Herald) -> String {
    let added = mesh.cli(&["device", "add", "ann", "--webhook", ENDPOINT]).await;
    let secret = added["webhook_secret"].as_str().or(added["secret"].as_str());
    secret.unwrap_or_else(|| panic!("{added}")).to_owned()
}

async fn listed(mesh: &Herald) -> Value {
    mesh.cli(&["device", "list", "ann"]).await["devices"].clone()
}

/// Starts `herald up` on free ports, which must refuse to start; returns what it says.
async fn refusal(data_dir: &str, variables: &[(&str, &str)]) -> String {
    let arguments = [
        "up",
        "--grpc",
        "127.0.0.1:0",
        "--operator-grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--nats-port",
        "0",
    ];
    let arguments = [&arguments[..], &["--data-dir", data_dir]].concat();
    let refused = run(HERALD, &arguments, variables).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    refused.stderr
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_of_a_first_look_are_encrypted_and_need_the_key_of_its_directory() {
    let mut mesh = Herald::start(HERALD, Options::default()).await;
    let data = mesh.data_dir();
    let data_name = data.to_str().unwrap();
    let key_file = data.join("storage.key");
    assert_eq!(
        fs::metadata(&key_file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let key = fs::read_to_string(&key_file).unwrap();
    add(&mesh).await;
    let before = listed(&mesh).await;
    let place = tempfile::tempdir().unwrap();
    let backup = place.path().join("backup");
    let backup_name = backup.to_str().unwrap();
    let done = herald(&["backup", backup_name, "--data-dir", data_name], &[]).await;
    assert_eq!(done.code, 0, "{done:?}");
    let done: Value = serde_json::from_str(&done.stdout).unwrap();
    let key_id = done["storage_key_ids"][0].as_str().unwrap().to_owned();
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
    assert!(mesh.log().contains(&key_id), "{}", mesh.log());
    for dir in [&data, &backup] {
        assert_eq!(files_with(dir, "endpoint-of-ann"), Vec::<PathBuf>::new());
    }
    assert!(!mesh.log().contains("endpoint-of-ann"), "{}", mesh.log());
    // A backup has no key in it, under whatever name.
    assert_eq!(files_with(&backup, key.trim()), Vec::<PathBuf>::new());

    // Without the key nothing starts, and no other key takes its place.
    let kept = place.path().join("kept.key");
    fs::rename(&key_file, &kept).unwrap();
    let says = refusal(data_name, &[]).await;
    assert!(says.contains(&key_id) && says.contains("storage.key"), "{says}");
    assert!(!key_file.exists());
    let target = place.path().join("restored");
    let target_name = target.to_str().unwrap();
    let restore = ["restore", backup_name, "--data-dir", target_name];
    let refused = herald(&restore, &[]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains(&key_id) && refused.stderr.contains("--storage-key"),
        "{refused:?}"
    );
    assert!(!target.exists());
    let with_key = [&restore[..], &["--storage-key", kept.to_str().unwrap()]].concat();
    let restored = herald(&with_key, &[]).await;
    assert_eq!(restored.code, 0, "{restored:?}");
    let copy = target.join("storage.key");
    assert_eq!(fs::read_to_string(&copy).unwrap(), key);
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&target, &data).unwrap();
    mesh.restart().await;
    assert_eq!(listed(&mesh).await, before);
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_of_a_running_mesh_ends_the_need_for_the_old_key() {
    let mut mesh = Herald::start(HERALD, Options::default()).await;
    let data = mesh.data_dir();
    let data_name = data.to_str().unwrap();
    add(&mesh).await;
    let before = listed(&mesh).await;
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
    // A key on another disk, instead of that of the data directory.
    let place = tempfile::tempdir().unwrap();
    let new = place.path().join("new.key");
    fs::write(&new, "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n").unwrap();
    let variable = ("HERALD_STORE__ENCRYPTION__KEY_FILE", new.to_str().unwrap());
    mesh.options_mut()
        .variables
        .push((variable.0.into(), variable.1.into()));
    mesh.restart().await;
    assert_eq!(listed(&mesh).await, before);
    let rotate = [
        "key",
        "rotate-storage",
        "--data-dir",
        data_name,
        "--output",
        "json",
    ];
    let rotated = run_json(HERALD, &rotate, &[]).await;
    assert_eq!(rotated["user_count"], 1, "{rotated}");
    assert_eq!(rotated["encrypted_user_count"], 1, "{rotated}");
    assert_eq!(
        rotated["forgotten_key_ids"].as_array().unwrap().len(),
        1,
        "{rotated}"
    );
    // Of a mesh that runs, and of one that is stopped.
    let again = run_json(HERALD, &rotate, &[]).await;
    assert_eq!(again["encrypted_user_count"], 0, "{again}");
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
    let again = run_json(HERALD, &rotate, &[variable]).await;
    assert_eq!(again["key_id"], rotated["key_id"], "{again}");
    fs::remove_file(data.join("storage.key")).unwrap();
    mesh.restart().await;
    assert!(!data.join("storage.key").exists());
    assert_eq!(listed(&mesh).await, before);
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
    let says = refusal(data_name, &[]).await;
    assert!(says.contains(rotated["key_id"].as_str().unwrap()), "{says}");
    let malformed = refusal_of_settings(data_name, "c2hvcnQ=").await;
    assert!(
        malformed.contains("HERALD_STORE__ENCRYPTION__KEY") && !malformed.contains("c2hvcnQ"),
        "{malformed}"
    );
}

async fn refusal_of_settings(data_dir: &str, key: &str) -> String {
    let check = ["config", "check", "--data-dir", data_dir];
    let refused = run(HERALD, &check, &[("HERALD_STORE__ENCRYPTION__KEY", key)]).await;
    assert_ne!(refused.code, 0, "{refused:?}");
    refused.stderr
}
