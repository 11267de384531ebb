use std::{fs, path::PathBuf, process::Command};

use super::*;

/// A small file system in memory; unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` if mounting is not permitted.
    fn mount(at: &Path, mb: u32) -> Option<Self> {
        let size = format!("size={mb}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
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

/// Delivers until a delivery fails. Returns the durable posts and the error.
fn fill(timelines: &EmbeddedTimelines, first: u64) -> (Vec<u64>, Error) {
    let mut durable = Vec::new();
    for post in first..first + 1_000_000 {
        let outcome = block_on(async {
            timelines
                .deliver(PostId(post), recipients(1..=100_000))
                .await?
                .durable
                .await
        });
        match outcome {
            Ok(()) => durable.push(post),
            Err(error) => return (durable, error),
        }
    }
    panic!("the disk did not become full");
}

fn assert_all_readable(timelines: &EmbeddedTimelines, durable: &[u64]) {
    for user in [1, 50_000, 100_000] {
        let found = newest(timelines, user, None, usize::MAX);
        assert!(durable.iter().all(|post| found.contains(post)), "user {user}");
    }
}

#[test]
fn a_full_disk_rejects_deliveries_and_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(dir.path(), 96) else {
        eprintln!("skipped: mounting a small file system is not permitted here");
        return;
    };
    let data = dir.path().join("timelines");
    let config = Config {
        flush_interval_ms: 0,
        merge_blocks_min: u32::MAX,
        entries_max: usize::MAX,
        ..Config::default()
    };
    let ballast = dir.path().join("ballast");
    let fill_up = || fs::write(&ballast, vec![1; 40 << 20]).unwrap();

    // With a reserve, deliveries fail before the disk is full and succeed again when space is available.
    fill_up();
    let space = Arc::new(Space::new(dir.path(), 24));
    let timelines = EmbeddedTimelines::open(
        &data,
        &config,
        space,
        Arc::new(Fault::new(&data)),
        &Contents::none(&data),
    )
    .unwrap();
    let (mut durable, error) = fill(&timelines, 1);
    assert_eq!(error.kind(), ErrorKind::Full);
    assert!(!durable.is_empty());
    assert_all_readable(&timelines, &durable);
    fs::remove_file(&ballast).unwrap();
    let more = durable.len() as u64 + 2;
    // The cached free space may be stale.
    let until = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        match block_on(async {
            timelines
                .deliver(PostId(more), recipients(1..=100_000))
                .await?
                .durable
                .await
        }) {
            Ok(()) => break durable.push(more),
            Err(e) => assert!(
                e.kind() == ErrorKind::Full && std::time::Instant::now() < until,
                "{e}"
            ),
        }
    }
    drop(timelines);

    // Without a reserve, the disk becomes full during a flush. After space is freed and the store is reopened, all
    // durable deliveries are readable.
    fill_up();
    let timelines = open(&data, &config);
    let (late, error) = fill(&timelines, more + 1);
    assert!(
        matches!(error.kind(), ErrorKind::Full | ErrorKind::Failed),
        "{error}"
    );
    durable.extend(late);
    drop(timelines);
    fs::remove_file(&ballast).unwrap();
    let timelines = open(&data, &config);
    assert_all_readable(&timelines, &durable);
    let last = durable.last().unwrap() + 2;
    block_on(async {
        timelines
            .deliver(PostId(last), recipients(1..=10))
            .await
            .unwrap()
            .durable
            .await
            .unwrap();
    });
    assert_eq!(newest(&timelines, 1, None, 1), [last]);
}
