//! `herald backup` of a running mesh and `herald restore`.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, time::Duration};

use harness::{Herald, Options, Output, run, until};
use herald_proto::v1;

use crate::{HERALD, audit::audit};

const LIMIT: Duration = Duration::from_mins(1);
const READERS: [&str; 3] = ["ann", "cid", "dora"];

async fn herald(arguments: &[&str]) -> Output {
    let mut all = arguments.to_vec();
    all.extend(["--output", "json"]);
    run(HERALD, &all, &[]).await
}

async fn timeline(herald: &Herald, reader: &str) -> BTreeSet<u64> {
    let timeline = herald.cli(&["timeline", reader, "--all"]).await;
    let entries = timeline["entries"].as_array().unwrap();
    let ids: Vec<u64> = entries
        .iter()
        .map(|entry| entry["post_id"].as_u64().unwrap())
        .collect();
    let unique: BTreeSet<u64> = ids.iter().copied().collect();
    assert_eq!(ids.len(), unique.len(), "{ids:?}");
    unique
}

async fn settle(herald: &Herald) {
    let clients = herald.clients().await;
    until("nothing is left to do", LIMIT, || clients.is_idle()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_running_mesh_makes_a_working_one() {
    let mut mesh = Herald::start(HERALD, Options::default()).await;
    let clients = mesh.clients().await;
    for reader in READERS {
        let follow = v1::Follow {
            follower_id: reader.into(),
            author_id: "bob".into(),
            notify: None,
        };
        let request = v1::FollowRequest { follow: Some(follow) };
        clients.graph().follow(request).await.unwrap();
    }
    let submit = async |text: String| {
        let request = v1::SubmitPostRequest {
            author_id: "bob".into(),
            text,
            ..Default::default()
        };
        clients
            .posts()
            .submit_post(request)
            .await
            .unwrap()
            .into_inner()
            .post_id
    };
    let mut before = BTreeSet::new();
    for number in 0..20 {
        before.insert(submit(format!("before {number}")).await);
    }
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("backup");
    let (dir_name, data) = (dir.to_str().unwrap(), mesh.data_dir());
    let data_name = data.to_str().unwrap();
    let arguments = ["backup", dir_name, "--data-dir", data_name];
    let backing = herald(&arguments);
    tokio::pin!(backing);
    let mut during = BTreeSet::new();
    let done = loop {
        tokio::select! {
            done = &mut backing => break done,
            post = submit(format!("during {}", during.len())) => during.insert(post),
        };
    };
    assert_eq!(done.code, 0, "{done:?}");
    let result: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(result["stream_count"], 9, "{result}");
    assert!(result["row_count"].as_u64().unwrap() > 60, "{result}");
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    // The directory is not overwritten.
    let again = herald(&["backup", dir_name, "--data-dir", data_name]).await;
    assert_eq!(again.code, 2, "{again:?}");
    assert!(again.stderr.contains("is not empty"), "{again:?}");
    // The mesh went on.
    let after = submit("after".into()).await;
    settle(&mesh).await;
    assert!(timeline(&mesh, "ann").await.contains(&after));
    assert_eq!(audit(&mesh, &[]).await.0.code, 0);

    // A data directory in use, or one with data, is not replaced.
    let refused = herald(&["restore", dir_name, "--data-dir", data_name]).await;
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("is not empty"), "{refused:?}");
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
    fs::remove_dir_all(&data).unwrap();
    let restored = run(HERALD, &["restore", dir_name, "--data-dir", data_name], &[]).await;
    assert_eq!(restored.code, 0, "{restored:?}");
    assert!(
        restored.stdout.contains("stream POSTS begins anew at"),
        "{restored:?}"
    );
    assert!(restored.stdout.contains("herald audit --repair"), "{restored:?}");
    mesh.restart().await;
    settle(&mesh).await;
    audit(&mesh, &["--repair"]).await;
    settle(&mesh).await;
    // A post that was accepted between the copies of the streams and of the store can be planned in the store and not be
    // archived there. The audit says so, and finds nothing else.
    let (_, lines) = audit(&mesh, &[]).await;
    let findings = || {
        lines
            .iter()
            .map(|line| &line["finding"])
            .filter(|finding| !finding.is_null())
    };
    let unarchived = findings().filter(|finding| finding["kind"] == "unarchived");
    let lost: BTreeSet<u64> = unarchived
        .map(|finding| finding["post_id"].as_u64().unwrap())
        .collect();
    assert!(lost.is_subset(&during), "{lines:?}");
    assert!(
        findings().all(|finding| lost.contains(&finding["post_id"].as_u64().unwrap())),
        "{lines:?}"
    );
    // Analytics has counted the posts that it had not come to when the backup was made.
    let stats = mesh.cli(&["stats"]).await;
    assert!(
        !mesh.log().contains("the continuous audit has a finding"),
        "{}",
        mesh.log()
    );
    let found = timeline(&mesh, "ann").await.len();
    let counted = stats["totals"]["post_count"].as_u64().unwrap() as usize;
    assert!(
        (found..=found + lost.len()).contains(&counted),
        "{found}: {stats}"
    );
    let known: BTreeSet<u64> = before.union(&during).copied().collect();
    let new = mesh.cli(&["post", "--author", "bob", "--text", "new"]).await;
    let new = new["post_id"].as_u64().unwrap();
    assert!(!known.contains(&new) && new != after, "{new}");
    settle(&mesh).await;
    for reader in READERS {
        let found = timeline(&mesh, reader).await;
        assert!(
            found.is_superset(&before) && found.contains(&new),
            "{reader}: {found:?}"
        );
        assert!(
            found.iter().all(|post| *post == new || known.contains(post)),
            "{reader}: {found:?}"
        );
    }
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_mesh_is_backed_up_too_and_an_incomplete_backup_is_refused() {
    let mut mesh = Herald::start(HERALD, Options::default()).await;
    mesh.cli(&["follow", "ann", "bob"]).await;
    mesh.cli(&["post", "--author", "bob", "--text", "one"]).await;
    settle(&mesh).await;
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("backup");
    let (dir_name, data) = (dir.to_str().unwrap(), mesh.data_dir());
    let data_name = data.to_str().unwrap();
    let done = herald(&["backup", dir_name, "--data-dir", data_name]).await;
    assert_eq!(done.code, 0, "{done:?}");

    fs::remove_dir_all(&data).unwrap();
    let manifest = fs::read(dir.join("backup.json")).unwrap();
    fs::remove_file(dir.join("backup.json")).unwrap();
    let refused = herald(&["restore", dir_name, "--data-dir", data_name]).await;
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("no complete backup"), "{refused:?}");
    assert!(!data.exists());
    fs::write(dir.join("backup.json"), manifest).unwrap();
    let restored = herald(&["restore", dir_name, "--data-dir", data_name]).await;
    assert_eq!(restored.code, 0, "{restored:?}");
    mesh.restart().await;
    assert_eq!(timeline(&mesh, "ann").await, [1].into());
    assert_eq!(audit(&mesh, &[]).await.0.code, 0);
    let missing = herald(&["backup", "/proc/nothing/here", "--data-dir", data_name]).await;
    assert_ne!(missing.code, 0, "{missing:?}");
    assert_eq!(mesh.stop().await, 0, "{}", mesh.log());
}
