//! Directories that are no data directory, or an incomplete one: each is refused, and nothing in it is changed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use harness::{Herald, Options, Output, run};

use crate::HERALD;

/// All files and directories with their modes, and the content of files.
fn contents(dir: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            let content = if path.is_dir() {
                dirs.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            found.push((path, mode, content));
        }
    }
    found.sort();
    found
}

/// Runs `herald up` on free ports, or another command, with a data directory.
async fn herald(command: &[&str], data: &Path) -> Output {
    let mut all = command.to_vec();
    all.extend(["--data-dir", data.to_str().unwrap()]);
    if command[0] == "up" {
        all.extend([
            "--grpc",
            "127.0.0.1:0",
            "--operator-grpc",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--nats-port",
            "0",
        ]);
    }
    run(HERALD, &all, &[]).await
}

/// Asserts that commands refuse a directory with these words, and change nothing in it.
async fn assert_refused(commands: &[&[&str]], dir: &Path, says: &[&str]) {
    let before = dir.exists().then(|| contents(dir));
    for command in commands {
        let refused = herald(command, dir).await;
        assert_eq!(refused.code, 1, "{command:?}: {refused:?}");
        for part in says {
            assert!(
                refused.stderr.contains(part),
                "{command:?}: {part}: {}",
                refused.stderr
            );
        }
        assert_eq!(dir.exists().then(|| contents(dir)), before, "{command:?}");
    }
}

fn open_to_all(path: &Path) {
    let mode = if path.is_dir() { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_others_is_refused_and_unchanged() {
    let place = tempfile::tempdir().unwrap();
    let home = place.path().join("home");
    fs::create_dir_all(home.join("thesis")).unwrap();
    fs::write(home.join("thesis/chapter"), "text").unwrap();
    for path in [home.join("thesis/chapter"), home.join("thesis"), home.clone()] {
        open_to_all(&path);
    }
    let backup = place.path().join("backup");
    let backup = backup.to_str().unwrap();
    let others: [&[&str]; 4] = [
        &["up"],
        &["recover"],
        &["recover", "--dry-run"],
        &["backup", backup],
    ];
    let says = [
        "is not a data directory of Herald and not empty",
        "thesis",
        home.to_str().unwrap(),
    ];
    assert_refused(&others, &home, &says).await;
    assert!(!Path::new(backup).exists());

    // An empty or a missing one has no store that could be recovered or copied.
    let empty = place.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert_refused(
        &others[1..],
        &empty,
        &["is not a data directory", "it has no store"],
    )
    .await;
    let missing = place.path().join("missing");
    assert_refused(&others[1..], &missing, &["there is no data directory"]).await;
    let file = home.join("thesis/chapter");
    let refused = herald(&["recover"], &file).await;
    assert!(refused.stderr.contains("is not a directory"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_and_unfinished_restores_are_told_apart() {
    let mut mesh = Herald::start(HERALD, Options::default()).await;
    mesh.cli(&["follow", "ann", "bob"]).await;
    mesh.cli(&["post", "--author", "bob", "--text", "one"]).await;
    let data = mesh.data_dir();
    let place = tempfile::tempdir().unwrap();

    // Where a backup can't be.
    let inside = data.join("backup");
    let refused = herald(&["backup", inside.to_str().unwrap()], &data).await;
    assert!(refused.stderr.contains("is in the data directory"), "{refused:?}");
    assert!(!inside.exists());
    let unmounted = place.path().join("disk/backup");
    let refused = herald(&["backup", unmounted.to_str().unwrap()], &data).await;
    let parent = format!("{} doesn't exist", place.path().join("disk").display());
    assert!(refused.stderr.contains(&parent), "{refused:?}");
    assert!(!place.path().join("disk").exists());

    let dir = place.path().join("backup");
    let dir_name = dir.to_str().unwrap();
    let done = herald(&["backup", dir_name], &data).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
    for part in [dir.clone(), dir.join("store")] {
        let says = ["is a backup", "herald restore", dir_name];
        assert_refused(&[&["up"], &["recover"]], &part, &says).await;
    }

    // A backup that others can read makes a directory that they can't.
    for (path, _, _) in contents(&dir) {
        open_to_all(&path);
    }
    let target = place.path().join("new");
    let checked = run(HERALD, &["restore", dir_name, "--check"], &[]).await;
    assert_eq!(checked.code, 0, "{checked:?}");
    assert!(checked.stdout.contains("are as they were"), "{checked:?}");
    let restored = herald(&["restore", dir_name], &target).await;
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o700);
    for (path, mode, _) in contents(&target) {
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }

    // A restore that fails half-way, because a part of its target is in its way.
    let missing = place.path().join("disk/new");
    let refused = herald(&["restore", dir_name], &missing).await;
    assert!(refused.stderr.contains(&parent), "{refused:?}");
    let target = place.path().join("interrupted");
    let program = place.path().join("nats-server");
    fs::write(&program, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let arguments = ["restore", dir_name, "--data-dir", target.to_str().unwrap()];
    let failed = run(
        HERALD,
        &arguments,
        &[("HERALD_NATS__PROGRAM", program.to_str().unwrap())],
    )
    .await;
    assert_ne!(failed.code, 0, "{failed:?}");
    let advice = format!("remove {} and run `herald restore` again", target.display());
    assert!(failed.stderr.contains(&advice), "{failed:?}");
    let backup_name = place.path().join("other");
    let commands: [&[&str]; 4] = [
        &["up"],
        &["recover"],
        &["backup", backup_name.to_str().unwrap()],
        &["restore", dir_name],
    ];
    assert_refused(&commands, &target, &["did not finish", &advice]).await;

    // A backup that did not finish, and one that a disk has changed.
    let manifest = fs::read(dir.join("backup.json")).unwrap();
    fs::remove_file(dir.join("backup.json")).unwrap();
    let refused = herald(&["backup", dir_name], &target.parent().unwrap().join("new")).await;
    assert!(
        refused.stderr.contains("has a backup that did not finish"),
        "{refused:?}"
    );
    fs::write(dir.join("backup.json"), manifest).unwrap();
    let changed = dir.join("streams/POSTS.snapshot");
    let mut bytes = fs::read(&changed).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&changed, bytes).unwrap();
    fs::remove_file(dir.join("files/vapid.key")).unwrap();
    let target = place.path().join("third");
    let says = [
        "POSTS.snapshot was changed",
        "vapid.key is missing",
        "nothing was restored",
    ];
    assert_refused(
        &[&["restore", dir_name], &["restore", dir_name, "--check"]],
        &target,
        &says,
    )
    .await;
}

/// A backup that can't be written leaves nothing that looks like one.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_backup_is_removed() {
    let mut mesh = Herald::start(HERALD, Options::default()).await;
    mesh.cli(&["follow", "ann", "bob"]).await;
    let data = mesh.data_dir();
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("backup");
    let broker = mesh.broker().await;
    let streams = async_nats::jetstream::new(broker);
    streams.delete_stream("POSTS").await.unwrap();
    let failed = herald(&["backup", dir.to_str().unwrap()], &data).await;
    assert_ne!(failed.code, 0, "{failed:?}");
    assert!(failed.stderr.contains("the backup was not made"), "{failed:?}");
    assert!(!dir.exists());
    mesh.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_socket_with_too_long_a_path_is_explained() {
    let place = tempfile::tempdir().unwrap();
    let long = place.path().join("x".repeat(120));
    fs::create_dir(&long).unwrap();
    let options = Options {
        parent: Some(long),
        ..Options::default()
    };
    let mut mesh = Herald::start(HERALD, options).await;
    assert!(
        mesh.log().contains("the path of the control socket is too long"),
        "{}",
        mesh.log()
    );
    let backup = place.path().join("backup");
    let refused = herald(&["backup", backup.to_str().unwrap()], &mesh.data_dir()).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    for part in ["is open in another process", "too long", "shorter --data-dir"] {
        assert!(refused.stderr.contains(part), "{part}: {refused:?}");
    }
    assert!(!backup.exists());
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
}

/// What a stop logs: one closing line, and no warnings about connections that were to end.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_with_one_line_and_without_warnings() {
    let mut mesh = Herald::start(HERALD, Options::default()).await;
    mesh.cli(&["follow", "ann", "bob"]).await;
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
    let log = mesh.log();
    assert!(!log.contains("WARN"), "{log}");
    assert!(
        log.trim_end().lines().last().unwrap().contains("stopped: "),
        "{log}"
    );
}

/// Parts of a data directory that vanish.
#[tokio::test(flavor = "multi_thread")]
async fn files_beside_the_store_that_vanished_are_told() {
    let mut mesh = Herald::start(HERALD, Options::default()).await;
    assert!(!mesh.log().contains("vanished"), "{}", mesh.log());
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
    let data = mesh.data_dir();
    fs::remove_dir_all(data.join("analytics")).unwrap();
    fs::remove_file(data.join("vapid.key")).unwrap();
    mesh.restart().await;
    let log = mesh.log();
    for part in [
        "the directory analytics.dir has vanished",
        "the file of the VAPID key has vanished",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
}

/// A block of a database, its `format`, its timelines, and its journals.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_with_the_right_advice() {
    let mut mesh = Herald::start(HERALD, Options::default()).await;
    for follower in ["ann", "cem", "dan"] {
        mesh.cli(&["follow", follower, "bob"]).await;
    }
    mesh.cli(&["post", "--author", "bob", "--text", "one"]).await;
    mesh.cli(&["delivery", "1", "--wait"]).await;
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
    let data = mesh.data_dir();

    fs::rename(data.join("format"), data.join("format-away")).unwrap();
    let commands: [&[&str]; 3] = [&["up"], &["recover"], &["recover", "--dry-run"]];
    assert_refused(&commands, &data, &["no file `format`", "herald-store"]).await;
    fs::rename(data.join("format-away"), data.join("format")).unwrap();

    let totals = data.join("totals");
    fs::rename(&totals, data.join("away")).unwrap();
    let missing = herald(&["up"], &data).await;
    assert!(missing.stderr.contains("the database totals"), "{missing:?}");
    assert!(!missing.stderr.contains("timelines"), "{missing:?}");
    fs::rename(data.join("away"), &totals).unwrap();

    // A dry run says what a recovery would do.
    let nothing = herald(&["recover", "--dry-run"], &data).await;
    assert_eq!(nothing.code, 0, "{nothing:?}");
    let journal = data.join("records/0.jnl");
    let intact = fs::read(&journal).unwrap();
    let at = intact.windows(3).position(|window| window == b"cem").unwrap();
    let mut damaged = intact.clone();
    damaged[at] ^= 4;
    fs::write(&journal, &damaged).unwrap();
    fs::rename(data.join("timelines"), data.join("away")).unwrap();
    let found = herald(&["recover", "--dry-run"], &data).await;
    assert_eq!(found.code, 1, "{found:?}");
    for part in [
        "records/0.jnl is damaged",
        "follows, devices, settings",
        "the timelines, or a part of them, are missing",
        "the streams were not compared",
    ] {
        assert!(found.stdout.contains(part), "{part}: {found:?}");
    }
    assert!(found.stderr.contains("without --dry-run"), "{found:?}");
    assert_eq!(fs::read(&journal).unwrap(), damaged);
    assert!(!data.join("damaged").exists());

    let recovered = herald(&["recover"], &data).await;
    assert_eq!(recovered.code, 0, "{recovered:?}");
    for part in [
        "records/0.jnl was damaged",
        "nothing finds the others",
        "are missing",
    ] {
        assert!(recovered.stdout.contains(part), "{part}: {recovered:?}");
    }
    for (path, mode, _) in contents(&data) {
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
    fs::remove_dir_all(data.join("away")).unwrap();
    mesh.restart().await;
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
}
