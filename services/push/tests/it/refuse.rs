//! Malformed messages are terminated and do not block the next message.

use herald_mesh::{Subject, streams};
use herald_model::Lane;
use herald_proto::mesh_v1::PushChunk;

use crate::harness::{Herald, numbers};

#[tokio::test]
async fn malformed_messages_are_terminated() {
    let herald = Herald::start().await;
    let user = herald.user("a").await;
    herald.webhook(user, "hook").await;
    let subject = Subject::PushDeliver(Lane::Normal);
    herald
        .mesh
        .publish_bytes(subject, None, "nonsense".into())
        .await
        .unwrap();
    let malformed = PushChunk {
        post_id: 1,
        recipients: vec![0xff].into(),
        recipient_count: 1,
        ..PushChunk::default()
    };
    herald.mesh.publish(subject, None, &malformed).await.unwrap();
    let wrong_id = PushChunk {
        post_id: 1,
        recipients: vec![1].into(),
        recipient_count: 1,
        chunk_id: 1,
        ..malformed
    };
    herald.mesh.publish(subject, None, &wrong_id).await.unwrap();

    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[user]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 0]);
    // No message was published again.
    let delivered = herald.mesh.last_sequence(streams::PUSH).await.unwrap();
    assert_eq!(delivered, 4);
}
