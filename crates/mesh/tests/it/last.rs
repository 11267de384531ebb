//! The last sequence of a stream when servers disagree.
//!
//! A cluster can't be made to disagree on demand, so the server maps the API request to a subject on which the test
//! answers for all replicas.

use futures::StreamExt as _;
use herald_local_nats::{Config as ServerConfig, Server};
use herald_mesh::{Config, ErrorKind, Mesh, streams};
use serde_json::json;

/// Subject to which the server maps the request.
const SCRIPT: &str = "scripted.stream.info";
/// Type of the answers.
const TYPE: &str = "io.nats.jetstream.api.v1.stream_info_response";

/// Answer of one server.
#[derive(Clone, Copy)]
enum Answer {
    /// A stream without replicas has this last sequence.
    Single(u64),
    /// The leader of three replicas, which a majority follows.
    Leader(u64),
    /// A leader of three replicas that has heard of no other replica for four seconds.
    Partitioned(u64),
    /// A replica that knows no leader.
    Leaderless(u64),
    /// The stream has no leader.
    Unavailable,
}

impl Answer {
    fn json(self) -> String {
        let replicas = |active_ns: u64| {
            let of = |name: &str| json!({"name": name, "current": true, "active": active_ns});
            json!([of("b"), of("c")])
        };
        let (last, count, cluster) = match self {
            Self::Single(last) => (last, 1, json!({"leader": "a"})),
            Self::Leader(last) => (last, 3, json!({"leader": "a", "replicas": replicas(400_000_000)})),
            Self::Partitioned(last) => (
                last,
                3,
                json!({"leader": "a", "replicas": replicas(4_000_000_000)}),
            ),
            Self::Leaderless(last) => (last, 3, json!({"replicas": replicas(400_000_000)})),
            Self::Unavailable => {
                return json!({"type": TYPE, "error": {
                    "code": 503, "err_code": 10008, "description": "JetStream system temporarily unavailable"
                }})
                .to_string();
            }
        };
        let config = json!({"num_replicas": count});
        let state = json!({"first_seq": 1, "last_seq": last, "last_ts": "2026-01-02T03:04:05Z"});
        json!({"type": TYPE, "config": config, "state": state, "cluster": cluster}).to_string()
    }
}

/// The last sequence that the mesh reads when servers send these answers, in this order.
async fn last_sequence(answers: &[Answer]) -> Result<u64, ErrorKind> {
    let server = Server::start(ServerConfig {
        extra: format!(
            "mappings: {{ \"$JS.API.STREAM.INFO.{}\": {SCRIPT} }}",
            streams::TIMELINE
        ),
        ..ServerConfig::default()
    })
    .await
    .unwrap();
    let url = server.client_url();
    let client = async_nats::connect(&url).await.unwrap();
    let mut requests = client.subscribe(SCRIPT).await.unwrap();
    client.flush().await.unwrap();
    let answering = async {
        let reply = requests.next().await.unwrap().reply.unwrap();
        for answer in answers {
            client.publish(reply.clone(), answer.json().into()).await.unwrap();
        }
        client.flush().await.unwrap();
    };
    let mesh = Mesh::connect(&Config::at(url)).await.unwrap();
    let (last, ()) = tokio::join!(mesh.last_sequence(streams::TIMELINE), answering);
    last.map_err(|error| error.kind())
}

#[tokio::test]
async fn the_greatest_sequence_of_a_leader_wins_in_any_order() {
    // A leader that has just been replaced may still have heard of a majority.
    for answers in [[4, 9, 9], [9, 4, 9], [9, 9, 4], [0, 4, 9]] {
        assert_eq!(last_sequence(&answers.map(Answer::Leader)).await, Ok(9));
    }
}

#[tokio::test]
async fn only_a_leader_that_a_majority_follows_is_believed() {
    use Answer::{Leader, Leaderless, Partitioned};
    // A greater sequence of a partitioned leader was never acknowledged.
    for answers in [
        [Partitioned(0), Leaderless(4), Leader(9)],
        [Leader(9), Partitioned(12), Leaderless(4)],
        [Leaderless(4), Leader(9), Partitioned(12)],
    ] {
        assert_eq!(last_sequence(&answers).await, Ok(9));
    }
    assert_eq!(
        last_sequence(&[Partitioned(9), Leaderless(9)]).await,
        Err(ErrorKind::Unavailable)
    );
}

#[tokio::test]
async fn an_unavailable_server_does_not_hide_other_answers() {
    let answers = [Answer::Leader(4), Answer::Unavailable, Answer::Leader(9)];
    assert_eq!(last_sequence(&answers).await, Ok(9));
    assert_eq!(
        last_sequence(&[Answer::Unavailable]).await,
        Err(ErrorKind::Unavailable)
    );
}

/// A stream with one replica needs no further answers.
#[tokio::test]
async fn the_answer_of_the_only_replica_is_final() {
    assert_eq!(
        last_sequence(&[Answer::Single(4), Answer::Single(9)]).await,
        Ok(4)
    );
}
