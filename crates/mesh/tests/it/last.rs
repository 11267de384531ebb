//! The end of a stream, told by servers that disagree.
//!
//! No cluster does that on command, so a real server hands the question to the test, which answers for all of them.

use futures::StreamExt as _;
use herald_local_nats::{Config as ServerConfig, Server};
use herald_mesh::{Config, ErrorKind, Mesh, streams};

/// Where the server hands the question to.
const SCRIPT: &str = "scripted.stream.info";

/// What one server says of the stream.
#[derive(Clone, Copy)]
enum Says {
    /// It ends here, and is on so many servers.
    Ends(u64, usize),
    /// Nobody leads it now.
    Unavailable,
}

impl Says {
    fn json(self) -> String {
        match self {
            Self::Ends(last, replicas) => format!(
                r#"{{"type":"io.nats.jetstream.api.v1.stream_info_response","config":{{"num_replicas":{replicas}}},"state":{{"last_seq":{last}}}}}"#
            ),
            Self::Unavailable => r#"{"type":"io.nats.jetstream.api.v1.stream_info_response","error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}"#.into(),
        }
    }
}

/// What the mesh takes for the last sequence when servers answer so, one after the other.
async fn heard(answers: &[Says]) -> Result<u64, ErrorKind> {
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
    let mut asked = client.subscribe(SCRIPT).await.unwrap();
    client.flush().await.unwrap();
    let answering = async {
        let reply = asked.next().await.unwrap().reply.unwrap();
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
async fn the_furthest_end_counts_whoever_tells_it() {
    // One that was cut off is the first, the last, or in between.
    for answers in [[4, 9, 9], [9, 4, 9], [9, 9, 4], [0, 4, 9]] {
        assert_eq!(heard(&answers.map(|last| Says::Ends(last, 3))).await, Ok(9));
    }
}

#[tokio::test]
async fn one_that_does_not_know_takes_nothing_away() {
    let answers = [Says::Ends(4, 3), Says::Unavailable, Says::Ends(9, 3)];
    assert_eq!(heard(&answers).await, Ok(9));
    assert_eq!(heard(&[Says::Unavailable]).await, Err(ErrorKind::Unavailable));
}

/// Where there is nobody else, nobody else is waited for.
#[tokio::test]
async fn the_only_server_is_believed() {
    assert_eq!(heard(&[Says::Ends(4, 1), Says::Ends(9, 1)]).await, Ok(4));
}
