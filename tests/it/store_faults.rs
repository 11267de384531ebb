//! Faults of the embedded store's disk: a fault that passes leaves no trace, and one that stays ends the process with
//! the cause and the remedy.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use harness::{Clients, Herald, Options, until};
use herald_proto::v1;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::HERALD;

const LIMIT: Duration = Duration::from_mins(1);

async fn follow(clients: &Clients, follower: &str) -> Result<(), tonic::Status> {
    let follow = v1::Follow {
        follower_id: follower.into(),
        author_id: "bob".into(),
        notify: None,
    };
    let request = v1::FollowRequest { follow: Some(follow) };
    clients.graph().follow(request).await.map(drop)
}

async fn post(clients: &Clients, text: &str) -> Result<u64, tonic::Status> {
    let request = v1::SubmitPostRequest {
        author_id: "bob".into(),
        text: text.into(),
        ..Default::default()
    };
    Ok(clients.posts().submit_post(request).await?.into_inner().post_id)
}

async fn timeline(clients: &Clients, user: &str) -> Vec<u64> {
    let request = v1::ListTimelineRequest {
        user_id: user.into(),
        page_size: 200,
        ..Default::default()
    };
    let answer = clients.timelines().list_timeline(request).await;
    let entries = answer.unwrap().into_inner().entries;
    entries
        .into_iter()
        .filter_map(|entry| Some(entry.post?.post_id))
        .collect()
}

/// Lets the process open no more files until it is dropped.
struct NoFiles {
    pid: Pid,
    before: Rlimit,
}

impl NoFiles {
    fn of(herald: &Herald) -> Self {
        let pid = i32::try_from(herald.pid()).ok().and_then(Pid::from_raw).unwrap();
        let none = Rlimit {
            current: Some(0),
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        let before = prlimit(Some(pid), Resource::Nofile, none).unwrap();
        Self { pid, before }
    }
}

impl Drop for NoFiles {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = prlimit(Some(self.pid), Resource::Nofile, self.before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_open_files_delay_and_lose_nothing() {
    let mut herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    follow(&clients, "ann").await.unwrap();
    let first = post(&clients, "before").await.unwrap();
    until("the first post is delivered", LIMIT, || async {
        timeline(&clients, "ann").await == [first]
    })
    .await;

    let no_files = NoFiles::of(&herald);
    // Waits for the store's next commit, which needs a file.
    let writes = {
        let clients = clients.clone();
        tokio::spawn(async move { (follow(&clients, "cem").await, post(&clients, "meanwhile").await) })
    };
    until("a commit waits for a file", LIMIT, || async {
        herald.log().contains("too many open files: a commit waits")
    })
    .await;
    drop(no_files);
    let (followed, accepted) = writes.await.unwrap();
    followed.unwrap();
    let second = accepted.unwrap();
    let third = post(&clients, "after").await.unwrap();
    until("all posts are delivered", LIMIT, || async {
        timeline(&clients, "ann").await == [third, second, first]
    })
    .await;
    assert_eq!(herald.stop().await, 0, "{}", herald.log());
}

/// A small file system in memory; unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` if mounting is not permitted.
    fn mount(at: &Path, mb: u32) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mb}m"), "tmpfs"])
            .arg(at)
            .output();
        mounted
            .is_ok_and(|out| out.status.success())
            .then(|| Self(at.into()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_within_a_write_ends_the_process_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(dir.path(), 128) else {
        eprintln!("skipped: mounting a small file system is not permitted here");
        return;
    };
    let options = Options {
        parent: Some(dir.path().into()),
        // Nothing warns: the writes themselves find the disk full.
        variables: vec![("HERALD_STORE__DISK_FREE_MB_MIN".into(), "0".into())],
        ..Options::default()
    };
    let mut herald = Herald::start(HERALD, options).await;
    let clients = herald.clients().await;
    follow(&clients, "ann").await.unwrap();
    let ballast = dir.path().join("ballast");
    // Fails at the end of the disk.
    let _ = std::fs::write(&ballast, vec![1; 160 << 20]);
    let mut followed = 1;
    let refused = loop {
        match follow(&clients, &format!("{followed}-{}", "x".repeat(100))).await {
            Ok(()) => followed += 1,
            Err(refused) => break refused,
        }
        assert!(followed < 100_000, "the disk did not become full");
    };
    assert!(
        !matches!(refused.code(), tonic::Code::Internal | tonic::Code::Unknown),
        "{refused:?}"
    );
    assert_eq!(herald.exited().await, Some(1), "{}", herald.log());
    let log = herald.log();
    let store = herald.data_dir();
    for part in [
        "No space left on device",
        "free some space on its disk",
        store.to_str().unwrap(),
    ] {
        assert!(log.contains(part), "{part} is not in the log:\n{log}");
    }

    std::fs::remove_file(&ballast).unwrap();
    herald.restart().await;
    let clients = herald.clients().await;
    let id = post(&clients, "there is room again").await.unwrap();
    until("the post is delivered", LIMIT, || async {
        timeline(&clients, "ann").await == [id]
    })
    .await;
}

/// Starts `herald up` on a data directory that it refuses. Returns the error.
async fn refused(data_dir: &Path) -> String {
    let mut command = tokio::process::Command::new(HERALD);
    command.args([
        "up",
        "--grpc",
        "127.0.0.1:0",
        "--operator-grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--nats-port",
        "0",
    ]);
    command.arg("--data-dir").arg(data_dir).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await;
    let output = output.expect("herald up ends").unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

/// The files and directories in a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.push(path);
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_is_private_and_damage_or_missing_parts_are_named_at_the_start() {
    let mut herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    for follower in ["ann", "cem", "dan"] {
        follow(&clients, follower).await.unwrap();
    }
    let id = post(&clients, "hello").await.unwrap();
    until("the post is delivered", LIMIT, || async {
        timeline(&clients, "ann").await == [id]
    })
    .await;
    let data = herald.data_dir();
    for path in files(&data).iter().chain([&data]) {
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has the mode {mode:o}", path.display());
    }
    assert_eq!(herald.stop().await, 0, "{}", herald.log());
    let path = data.to_str().unwrap();

    // A flipped bit in the middle of a journal.
    let journal = data.join("records/0.jnl");
    let intact = std::fs::read(&journal).unwrap();
    let at = intact.windows(3).position(|window| window == b"cem").unwrap();
    let mut damaged = intact.clone();
    damaged[at] ^= 4;
    std::fs::write(&journal, damaged).unwrap();
    let error = refused(&data).await;
    assert_says(
        &error,
        &[
            "records/0.jnl is damaged",
            &format!("herald recover --data-dir {path}"),
        ],
    );
    std::fs::write(&journal, &intact).unwrap();

    // A database that is gone.
    let totals = data.join("totals");
    let away = data.join("totals-away");
    std::fs::rename(&totals, &away).unwrap();
    assert_says(
        &refused(&data).await,
        &["the database totals", path, "is missing"],
    );
    std::fs::rename(&away, &totals).unwrap();

    // A store that is gone beside its streams.
    let store: Vec<_> = std::fs::read_dir(&data)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "nats")
        .collect();
    let away = tempfile::tempdir_in(data.parent().unwrap()).unwrap();
    for name in &store {
        std::fs::rename(data.join(name), away.path().join(name)).unwrap();
    }
    assert_says(&refused(&data).await, &["its store is gone", path]);
    for name in &store {
        std::fs::rename(away.path().join(name), data.join(name)).unwrap();
    }

    herald.restart().await;
    let clients = herald.clients().await;
    assert_eq!(timeline(&clients, "ann").await, [id]);
}
