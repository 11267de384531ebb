//! Whole meshes: healthy ones, and processes and stores that don't fit together.

use harness::{Herald, Options, Process, until};

use super::{LIMIT, Report, herald, servers::serve_json};
use crate::{HERALD, serve_cluster::World, surface::http_get};

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_herald_up_has_no_finding() {
    let mesh = Herald::start(HERALD, Options::default()).await;
    mesh.cli(&["follow", "alice", "bob", "--notify"]).await;
    mesh.cli(&["post", "--author", "bob", "--text", "hi"]).await;
    let data_dir = mesh.data_dir();
    let data_dir = data_dir.to_str().unwrap();
    let about = format!("http://{}", mesh.http());
    let report = Report::of(&["--data-dir", data_dir, "--metrics", &about], &[]).await;
    report.assert_ids(&[]);
    assert_eq!(report.notes(), ["fsync-interval"], "{report:?}");
    assert!(report.unchecked().is_empty(), "{report:?}");

    let text = herald(&["doctor", "--data-dir", data_dir, "--metrics", &about], &[]).await;
    assert_eq!(text.code, 0, "{text:?}");
    assert!(text.stdout.ends_with("nothing is wrong\n"), "{text:?}");
    assert!(text.stdout.contains("remedy: "), "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_another_version_is_a_note() {
    let mesh = Herald::start(HERALD, Options::default()).await;
    let own = format!("http://{}", mesh.http());
    let answer = http_get(mesh.http(), "/about").await;
    let (_, about) = answer.split_once("\r\n\r\n").unwrap();
    let mut about: serde_json::Value = serde_json::from_str(about).unwrap();
    let version = about["version"].as_str().unwrap().to_owned();
    about["version"] = "0.0.9".into();
    let older = serve_json(move |path| {
        if path == "/readyz" {
            return "[]".into();
        }
        let mut about = about.clone();
        about["time_us"] = jiff::Timestamp::now().as_microsecond().into();
        about.to_string()
    })
    .await;
    let data_dir = mesh.data_dir();
    let arguments = [
        "--data-dir",
        data_dir.to_str().unwrap(),
        "--metrics",
        &own,
        "--metrics",
        &older,
    ];
    let report = Report::of(&arguments, &[]).await;
    report.assert_ids(&[]);
    assert_eq!(
        report.notes(),
        ["fsync-interval", "versions-differ"],
        "{report:?}"
    );
    assert_eq!(
        report.what("versions-differ"),
        format!("the processes have different versions: 0.0.9 in {older}; {version} in {own}")
    );
    // One of them is no finding.
    let report = Report::of(&arguments[..4], &[]).await;
    assert_eq!(report.notes(), ["fsync-interval"], "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_mesh_the_command_says_what_to_name() {
    let dir = tempfile::tempdir().unwrap();
    let missing = herald(&["doctor", "--data-dir", dir.path().to_str().unwrap()], &[]).await;
    assert_eq!(missing.code, 3, "{missing:?}");
    assert!(
        missing.stderr.contains("--data-dir") && missing.stderr.contains("--nats-url"),
        "{missing:?}"
    );
    let away = herald(&["doctor", "--nats-url", "nats://127.0.0.1:1"], &[]).await;
    assert_eq!(away.code, 1, "{away:?}");
    assert!(away.stdout.contains("error broker-unreachable: "), "{away:?}");
}

/// Runs the command with the environment of the processes.
pub(super) async fn doctor(world: &World, processes: &[&Process]) -> Report {
    let urls: Vec<_> = processes
        .iter()
        .map(|process| format!("http://{}", process.http()))
        .collect();
    let monitor = world.nats.monitor_url();
    let mut arguments = vec!["--monitor", &monitor];
    for url in &urls {
        arguments.extend(["--metrics", url]);
    }
    Report::of(&arguments, &world.variables()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_on_a_shared_store_are_compared_with_each_other_and_with_it() {
    let Some(world) = World::start().await else { return };
    let callers = world
        .serve(
            "gateway,archive,graph,analytics,deadletter",
            &["--internal-grpc", "127.0.0.1:0"],
        )
        .await;
    let peer = format!("graph={}", callers.internal_url().unwrap());
    let workers = world.serve("fanout,timeline,push", &["--peer", &peer]).await;
    callers.cli(&["follow", "alice", "bob"]).await;
    callers.cli(&["post", "--author", "bob", "--text", "hi"]).await;
    let report = doctor(&world, &[&callers, &workers]).await;
    report.assert_ids(&[]);
    assert_eq!(report.notes(), ["fsync-interval"], "{report:?}");
    assert!(report.unchecked().is_empty(), "{report:?}");

    // A process of another configuration.
    let mut variables = world.variables();
    for (name, value) in [
        ("HERALD_FANOUT__PUSH_CHUNK_RECIPIENTS_MAX", "100"),
        ("HERALD_FANOUT__POSTS_IN_FLIGHT_MAX__LOW", "4096"),
    ] {
        variables.push((name.into(), value.into()));
    }
    let other = Process::start(HERALD, "fanout", &["--peer", &peer], &variables).await;
    let report = doctor(&world, &[&callers, &workers, &other]).await;
    report.assert_ids(&["chunks-differ"]);
    let what = report.what("chunks-differ");
    assert!(
        what.starts_with("fanout.push_chunk_recipients_max differs: 100 in http://"),
        "{what}"
    );
    let second = Process::start(HERALD, "fanout", &["--peer", &peer], &variables).await;
    let report = doctor(&world, &[&workers, &other, &second]).await;
    report.assert_ids(&["chunks-differ"]);
    // Each has room for less than the consumer allows, and nothing waits.
    assert!(report.notes().contains(&"ack-pending-small"), "{report:?}");
    let what = report.what("ack-pending-small");
    assert!(what.ends_with("3 workers have room for 8,208"), "{what}");
    drop(second);
    drop(other);

    // Others expect another topology; the command has that of the first two.
    variables = world.variables();
    variables.push(("HERALD_TOPOLOGY__PUSH__AGE_SECONDS_MAX".into(), "90000".into()));
    variables.push(("HERALD_NATS__TOPOLOGY".into(), "verify".into()));
    let other = Process::start(HERALD, "push", &[], &variables).await;
    let report = doctor(&world, &[&callers, &workers, &other]).await;
    report.assert_ids(&["topology-differs"]);
    assert!(
        report
            .what("topology-differs")
            .starts_with("topology.push.age_seconds_max"),
        "{report:?}"
    );
    drop(other);

    // POSTS is made again behind the back of the archive.
    until(
        "the post is archived and its mark is written",
        LIMIT,
        async || {
            let jetstream =
                async_nats::jetstream::new(async_nats::connect(world.nats.client_url()).await.unwrap());
            let stream = jetstream.get_stream("POSTS").await.unwrap();
            stream
                .consumer_info("archive")
                .await
                .unwrap()
                .ack_floor
                .stream_sequence
                == 1
        },
    )
    .await;
    let jetstream = async_nats::jetstream::new(async_nats::connect(world.nats.client_url()).await.unwrap());
    jetstream.delete_stream("POSTS").await.unwrap();
    let applied = herald(&["topology", "apply"], &world.variables()).await;
    assert_eq!(applied.code, 0, "{applied:?}");
    let found = async || doctor(&world, &[&callers, &workers]).await;
    until("the workers read again", LIMIT, async || {
        found().await.ids() == ["process-not-ready", "stream-lost-tail"]
    })
    .await;
    let report = found().await;
    report.assert_ids(&["process-not-ready", "stream-lost-tail"]);
    let what = report.what("process-not-ready");
    assert!(
        what.contains(callers.http()) && what.contains("streams ("),
        "{what}"
    );
    assert!(
        report.what("stream-lost-tail").starts_with("stream POSTS"),
        "{report:?}"
    );
}
