//! Faults of the embedded store's disk: a fault that passes leaves no trace, and one that stays ends the process with
//! the cause and the remedy.

use std::{
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
