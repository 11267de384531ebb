//! A server that is partitioned from its cluster and reports a stale end of POSTS, beside the current leader.
//!
//! A test can't control which server of a cluster replies first. So a subject mapping routes the stream info request
//! for POSTS to the test, and the test replies for both servers: first with the stale end, then with the real one.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures::StreamExt as _;
use herald_mesh::streams;
use serde_json::{Value, json};

/// The subject that receives the mapped requests.
const MAPPED_SUBJECT: &str = "scripted.stream.info";

/// Lines of the server's configuration.
pub(crate) fn server_lines() -> String {
    format!(
        "mappings: {{ \"$JS.API.STREAM.INFO.{}\": {MAPPED_SUBJECT} }}",
        streams::POSTS
    )
}

/// Replies for both servers.
pub(crate) struct PartitionedServer {
    is_reachable: Arc<AtomicBool>,
}

impl PartitionedServer {
    /// Starts with replies of the leader only.
    pub(crate) async fn start(url: String) -> Self {
        let client = async_nats::connect(url).await.unwrap();
        let mut requests = client.subscribe(MAPPED_SUBJECT).await.unwrap();
        client.flush().await.unwrap();
        let is_reachable = Arc::new(AtomicBool::new(false));
        let reachable = is_reachable.clone();
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let reply = request.reply.unwrap();
                let mut response = real_reply(&client).await;
                if reachable.load(Ordering::SeqCst) {
                    response["config"]["num_replicas"] = json!(3);
                    response["cluster"] = cluster("leader", 0);
                    let mut stale = response.clone();
                    stale["state"]["last_seq"] = json!(0);
                    // The partitioned server led the stream, and has heard of no other server since.
                    stale["cluster"] = cluster("partitioned", 10_000_000_000);
                    client
                        .publish(reply.clone(), stale.to_string().into())
                        .await
                        .unwrap();
                }
                client.publish(reply, response.to_string().into()).await.unwrap();
            }
        });
        Self { is_reachable }
    }

    /// From now on the partitioned server replies too, first, and reports an empty stream.
    pub(crate) fn become_reachable(&self) {
        self.is_reachable.store(true, Ordering::SeqCst);
    }
}

/// The cluster as its leader sees it, which has heard of the other servers this long ago.
fn cluster(leader: &str, active_ns: u64) -> Value {
    let follower = |name| json!({ "name": name, "current": true, "active": active_ns });
    json!({ "leader": leader, "replicas": [follower("b"), follower("c")] })
}

/// The real reply, taken from the list of all streams.
async fn real_reply(client: &async_nats::Client) -> Value {
    let list = client.request("$JS.API.STREAM.LIST", "".into()).await.unwrap();
    let list: Value = serde_json::from_slice(&list.payload).unwrap();
    let streams = list["streams"].as_array();
    let posts = streams.and_then(|all| all.iter().find(|one| one["config"]["name"] == streams::POSTS));
    let mut response = posts.cloned().unwrap_or_else(
        || json!({ "error": { "code": 404, "err_code": 10059, "description": "stream not found" } }),
    );
    response["type"] = json!("io.nats.jetstream.api.v1.stream_info_response");
    response
}
