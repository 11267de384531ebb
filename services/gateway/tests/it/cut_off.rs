//! A server that was cut off from its cluster and tells an old end of POSTS, beside the one that leads it now.
//!
//! Which of two servers answers first can't be told to a cluster. So the one server hands the question about POSTS to the
//! test, which answers for both: first with the old end, then with what the server itself has.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures::StreamExt as _;
use herald_mesh::streams;
use serde_json::{Value, json};

/// Where the server hands the question to.
const SCRIPT: &str = "scripted.stream.info";

/// Lines for the server's configuration.
pub(crate) fn server_lines() -> String {
    format!(
        "mappings: {{ \"$JS.API.STREAM.INFO.{}\": {SCRIPT} }}",
        streams::POSTS
    )
}

/// Answers for both servers.
pub(crate) struct CutOff {
    is_back: Arc<AtomicBool>,
}

impl CutOff {
    /// As long as nobody says otherwise only the one that leads answers.
    pub(crate) async fn start(url: String) -> Self {
        let client = async_nats::connect(url).await.unwrap();
        let mut asked = client.subscribe(SCRIPT).await.unwrap();
        client.flush().await.unwrap();
        let is_back = Arc::new(AtomicBool::new(false));
        let answers_too = is_back.clone();
        tokio::spawn(async move {
            while let Some(question) = asked.next().await {
                let reply = question.reply.unwrap();
                let mut answer = what_the_server_has(&client).await;
                if answers_too.load(Ordering::SeqCst) {
                    answer["config"]["num_replicas"] = json!(3);
                    let mut old = answer.clone();
                    old["state"]["last_seq"] = json!(0);
                    client
                        .publish(reply.clone(), old.to_string().into())
                        .await
                        .unwrap();
                }
                client.publish(reply, answer.to_string().into()).await.unwrap();
            }
        });
        Self { is_back }
    }

    /// From now on the one that was cut off answers too, and first: the stream is empty.
    pub(crate) fn comes_back(&self) {
        self.is_back.store(true, Ordering::SeqCst);
    }
}

/// The answer to the question, from the list of all streams.
async fn what_the_server_has(client: &async_nats::Client) -> Value {
    let list = client.request("$JS.API.STREAM.LIST", "".into()).await.unwrap();
    let list: Value = serde_json::from_slice(&list.payload).unwrap();
    let streams = list["streams"].as_array();
    let posts = streams.and_then(|all| all.iter().find(|one| one["config"]["name"] == streams::POSTS));
    let mut answer = posts.cloned().unwrap_or_else(
        || json!({ "error": { "code": 404, "err_code": 10059, "description": "stream not found" } }),
    );
    answer["type"] = json!("io.nats.jetstream.api.v1.stream_info_response");
    answer
}
