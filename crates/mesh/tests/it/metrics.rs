use herald_mesh::{Config, ConsumeOptions, Disposition, Mesh, Metrics};
use herald_metrics::Shared;

use crate::harness::{CONSUMER, Fixture, SUBJECT, ScriptedHandler, chunk, post, until};

#[tokio::test]
async fn what_becomes_of_messages_is_counted() {
    let mut fixture = Fixture::start().await;
    let shared = Shared::new();
    let metrics = shared.register(Metrics::new);
    let config = Config::at(fixture.server.client_url());
    fixture.mesh = Mesh::connect_with(&config, metrics).await.unwrap();
    fixture.publish(2..=4).await;
    for _ in 0..2 {
        let published = fixture.mesh.publish(SUBJECT, Some("once"), &chunk(1)).await;
        published.unwrap();
    }
    let (handler, _seen) = ScriptedHandler::new(async |delivery| match (post(&delivery), delivery.attempt) {
        (2, 1) => Disposition::retry("not yet"),
        (3, 1) => panic!("on purpose"),
        (4, _) => Disposition::term("never"),
        _ => Disposition::Ack,
    });
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    fixture.wait_until_settled().await;
    until("all are counted", async || {
        shared.open_metrics().contains(&format!(
            "herald_consumer_process_seconds_count{{consumer=\"{CONSUMER}\"}} 6\n"
        ))
    })
    .await;
    worker.stop().await;
    let text = shared.open_metrics();
    for (family, label, value, count) in [
        ("messages", "result", "acked", 3),
        ("messages", "result", "retried", 2),
        ("messages", "result", "terminated", 1),
        ("messages", "result", "waiting", 0),
        ("messages", "result", "released", 0),
        ("retries", "reason", "transient", 1),
        ("retries", "reason", "panic", 1),
        ("retries", "reason", "permanent", 0),
    ] {
        let line =
            format!("herald_consumer_{family}_total{{consumer=\"{CONSUMER}\",{label}=\"{value}\"}} {count}");
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    for line in [
        "herald_consumer_redeliveries_total{consumer=\"timeline-normal\"} 2",
        "herald_publish_messages_total{stream=\"TIMELINE\",result=\"stored\"} 4",
        "herald_publish_messages_total{stream=\"TIMELINE\",result=\"duplicate\"} 1",
        "herald_publish_seconds_count{stream=\"TIMELINE\"} 5",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}
