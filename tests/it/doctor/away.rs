//! Parts of a mesh that are stopped, gone, not ready or paused: each is a finding within seconds.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use futures::StreamExt as _;
use harness::{Herald, Options, until};
use rustix::process::{Pid, Signal, kill_process};

use super::{Broker, LIMIT, Report, herald, meshes::doctor};
use crate::{HERALD, serve_cluster::World};

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_herald_up_is_found_and_no_command_waits_for_it() {
    let mesh = Herald::start(HERALD, Options::default()).await;
    let data_dir = mesh.data_dir();
    let data_dir = data_dir.to_str().unwrap();
    // Its HTTP port is no default, and is found.
    let report = Report::of(&["--data-dir", data_dir], &[]).await;
    report.assert_ids(&[]);
    assert!(report.unchecked().is_empty(), "{report:?}");

    signal(mesh.pid(), Signal::STOP);
    let report = Report::of(&["--data-dir", data_dir], &[]).await;
    report.assert_ids(&["process-unreachable"]);
    let what = report.what("process-unreachable");
    let name = format!("herald up (pid {})", mesh.pid());
    assert!(
        what.starts_with(&name) && what.contains("doesn't answer"),
        "{what}"
    );
    assert!(report.unchecked().contains(&"stream-lost-tail"), "{report:?}");
    let parent = tempfile::tempdir().unwrap();
    let backup = parent.path().join("backup");
    for arguments in [
        ["backup", backup.to_str().unwrap(), "--data-dir", data_dir].as_slice(),
        &["key", "rotate-storage", "--data-dir", data_dir],
    ] {
        let refused = herald(arguments, &[]).await;
        assert_eq!(refused.code, 3, "{refused:?}");
        assert!(
            refused.stderr.contains(&name) && refused.stderr.contains("kill -CONT"),
            "{refused:?}"
        );
    }

    signal(mesh.pid(), Signal::CONT);
    until("the process answers again", LIMIT, async || {
        Report::of(&["--data-dir", data_dir], &[]).await.code == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_remedies_of_herald_up_can_be_typed() {
    let mesh = Herald::start(HERALD, Options::default()).await;
    let data_dir = mesh.data_dir();
    let data_dir = data_dir.to_str().unwrap();
    let jetstream = async_nats::jetstream::new(mesh.broker().await);
    let stream = jetstream.get_stream("EVENTS").await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.max_bytes = 1 << 20;
    jetstream.update_stream(&config).await.unwrap();
    let verify = ["topology", "verify", "--data-dir", data_dir];
    let differs = herald(&verify, &[]).await;
    assert_eq!(differs.code, 1, "{differs:?}");
    let report = Report::of(&["--data-dir", data_dir], &[]).await;
    let findings = report.json["findings"].as_array().unwrap();
    let found = findings.iter().find(|one| one["id"] == "stream-differs");
    let remedy = found.unwrap_or_else(|| panic!("{report:?}"))["remedy"]
        .as_str()
        .unwrap();
    let (_, command) = remedy.split_once("`herald ").unwrap();
    let (command, _) = command.split_once('`').unwrap();
    assert_eq!(command, format!("topology apply --data-dir {data_dir}"));
    let applied = herald(&command.split(' ').collect::<Vec<_>>(), &[]).await;
    assert_eq!(applied.code, 0, "{applied:?}");
    let same = herald(&verify, &[]).await;
    assert_eq!(same.code, 0, "{same:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_from_the_configuration_of_the_command_comes_after_it() {
    let mesh = Herald::start(HERALD, Options::default()).await;
    let data_dir = mesh.data_dir();
    let variables = [(
        "HERALD_TOPOLOGY__DEDUPE_WINDOW_SECONDS".to_owned(),
        "2000".to_owned(),
    )];
    let report = Report::of(&["--data-dir", data_dir.to_str().unwrap()], &variables).await;
    assert_eq!(report.json["findings"][0]["id"], "topology-differs", "{report:?}");
    let short = report.of_severity(|severity| severity == "error");
    assert_eq!(short, ["dedupe-window-short"], "one for all streams: {report:?}");
    let what = report.what("dedupe-window-short");
    assert!(what.starts_with("streams ") && what.contains("POSTS"), "{what}");
}

#[tokio::test]
async fn a_stopped_nats_server_is_a_finding_with_a_mend_of_its_own() {
    let broker = Broker::start().await;
    signal(broker.nats.pid(), Signal::STOP);
    let report = broker.doctor().await;
    signal(broker.nats.pid(), Signal::CONT);
    report.assert_ids(&["broker-unreachable", "server-unreachable"]);
    let findings = report.json["findings"].as_array().unwrap();
    for finding in findings {
        assert!(
            finding["remedy"].as_str().unwrap().contains("kill -CONT"),
            "{finding}"
        );
    }
    for id in ["stream-missing", "consumer-unread", "stream-frozen"] {
        assert!(report.unchecked().contains(&id), "{report:?}");
    }
    broker.doctor().await.assert_ids(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_are_away_and_workers_that_hang_are_findings() {
    let Some(world) = World::start().await else { return };
    let callers = world
        .serve(
            "gateway,archive,graph,analytics,deadletter",
            &["--internal-grpc", "127.0.0.1:0"],
        )
        .await;
    let peer = format!("graph={}", callers.internal_url().unwrap());
    let workers = world.serve("fanout,timeline,push", &["--peer", &peer]).await;
    doctor(&world, &[&callers, &workers]).await.assert_ids(&[]);

    workers.signal(Signal::STOP);
    let report = doctor(&world, &[&callers, &workers]).await;
    workers.signal(Signal::CONT);
    report.assert_ids(&["process-unreachable"]);
    let what = report.what("process-unreachable");
    assert!(
        what.contains(workers.http()) && what.contains("doesn't answer"),
        "{what}"
    );

    for stopped in [true, false] {
        if stopped {
            world.redis.pause().unwrap();
        } else {
            world.redis.kill().await.unwrap();
        }
        let ids = ["process-not-ready", "store-unreachable"];
        until("the processes notice", LIMIT, async || {
            doctor(&world, &[&callers, &workers]).await.ids() == ids
        })
        .await;
        let report = doctor(&world, &[&callers, &workers]).await;
        report.assert_ids(&ids);
        let what = report.what("store-unreachable");
        assert_eq!(what.contains("doesn't answer"), stopped, "{what}");
        assert!(what.contains("timelines"), "{what}");
        let what = report.what("process-not-ready");
        assert!(what.contains("timelines ("), "{what}");
        if stopped {
            world.redis.resume().unwrap();
        }
    }
}

#[tokio::test]
async fn a_paused_consumer_is_found_and_verified() {
    let broker = Broker::start().await;
    broker.publish("push.v1.deliver.high", b"x".into()).await.unwrap();
    let stream = broker.jetstream.get_stream("PUSH").await.unwrap();
    let pause_until = jiff::Timestamp::now() + Duration::from_hours(1);
    let request = serde_json::json!({"pause_until": pause_until.to_string()});
    let paused: serde_json::Value = broker
        .jetstream
        .request("CONSUMER.PAUSE.PUSH.push-high", &request)
        .await
        .unwrap();
    assert_eq!(paused["paused"], true, "{paused}");
    let report = broker.doctor().await;
    report.assert_ids(&["consumer-paused"]);
    let what = report.what("consumer-paused");
    assert!(
        what.starts_with("consumer push-high of stream PUSH is paused for another ")
            && what.ends_with("1 message waits for it"),
        "{what}"
    );
    let verified = herald(&["topology", "verify"], &broker.variables).await;
    assert_eq!(verified.code, 1, "{verified:?}");
    assert!(
        verified
            .stdout
            .contains("consumer push-high of stream PUSH: pause_until is "),
        "{verified:?}"
    );
    stream.resume_consumer("push-high").await.unwrap();
    broker.doctor().await.assert_ids(&["consumer-unread"]);
}

#[tokio::test]
async fn deliveries_that_are_read_and_late_are_found() {
    let broker = Broker::start().await;
    broker.publish("push.v1.deliver.high", b"x".into()).await.unwrap();
    let stream = broker.jetstream.get_stream("PUSH").await.unwrap();
    let consumer: PullConsumer = stream.get_consumer("push-high").await.unwrap();
    let pulled = consumer.batch().max_messages(1_000).expires(LIMIT * 2);
    let mut messages = pulled.messages().await.unwrap();
    let _held = messages.next().await.unwrap().unwrap();
    until("the message is older than the promise", LIMIT, async || {
        broker.doctor().await.ids() == ["deliveries-late"]
    })
    .await;
    let report = broker.doctor().await;
    report.assert_ids(&["deliveries-late"]);
    let what = report.what("deliveries-late");
    assert!(
        what.contains("consumer push-high") && what.ends_with("promised are 5 s"),
        "{what}"
    );
}
