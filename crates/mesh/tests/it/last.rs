//! The last sequence of a stream when servers disagree.
//!
//! A cluster can't be made to disagree on demand, so the server maps the API request to a subject on which the test
//! answers for all replicas.

use futures::StreamExt as _;
use herald_local_nats::{Config as ServerConfig, Server};
use herald_mesh::{Config, ErrorKind, Mesh, streams};

/// Subject to which the server maps the request.
const SCRIPT: &str = "scripted.stream.info";

/// Answer of one server.
#[derive(Clone, Copy)]
enum Answer {
    /// Last sequence and number of replicas, from a leader that all replicas follow.
    Last(u64, usize),
    /// Last sequence, from one of three replicas that knows no leader.
    Leaderless(u64),
    /// The stream has no leader.
    Unavailable,
}

impl Answer {
    fn json(self) -> String {
        match self {
            Self::Last(last, replicas) => {
                let followers: Vec<String> = (1..replicas)
                    .map(|n| format!(r#"{{"name":"follower-{n}","current":true,"active":1000000}}"#))
                    .collect();
                info(
                    last,
                    replicas,
                    &format!(r#"{{"leader":"leader","replicas":[{}]}}"#, followers.join(",")),
                )
            }
            Self::Leaderless(last) => info(last, 3, r#"{"replicas":[]}"#),
            Self::Unavailable => r#"{"type":"io.nats.jetstream.api.v1.stream_info_response","error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}"#.into(),
        }
    }
}

fn info(last: u64, replicas: usize, cluster: &str) -> String {
    format!(
        r#"{{"type":"io.nats.jetstream.api.v1.stream_info_response","config":{{"num_replicas":{replicas}}},"state":{{"last_seq":{last}}},"cluster":{cluster}}}"#
    )
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
async fn the_greatest_sequence_wins_in_any_order() {
    // The stale answer is the first, the last, or in between.
    for answers in [[4, 9, 9], [9, 4, 9], [9, 9, 4], [0, 4, 9]] {
        assert_eq!(
            last_sequence(&answers.map(|last| Answer::Last(last, 3))).await,
            Ok(9)
        );
    }
}

#[tokio::test]
async fn an_answer_without_a_leader_is_not_taken() {
    let answers = [Answer::Leaderless(11), Answer::Last(9, 3)];
    assert_eq!(last_sequence(&answers).await, Ok(9));
}

#[tokio::test]
async fn an_unavailable_server_does_not_hide_other_answers() {
    let answers = [Answer::Last(4, 3), Answer::Unavailable, Answer::Last(9, 3)];
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
        last_sequence(&[Answer::Last(4, 1), Answer::Last(9, 1)]).await,
        Ok(4)
    );
}
