//! Marks of streams.

use herald_model::time::Timestamp;
use herald_store::StreamMark;

use crate::engine::Engine;

fn mark(stream: &str, sequence: u64, at: i64) -> StreamMark {
    StreamMark {
        stream: stream.into(),
        sequence,
        published_at: Timestamp(at),
    }
}

pub async fn a_mark_only_goes_forward_and_survives_a_restart<E: Engine>(engine: &mut E) {
    let marks = engine.stores().stream_marks;
    assert_eq!(marks.all().await.unwrap(), []);
    marks.record(&[]).await.unwrap();
    // The sequences of streams that were made again are microseconds.
    let push = mark("PUSH", 1_795_939_200_000_000, 5);
    marks.record(&[mark("POSTS", 7, 3), push.clone()]).await.unwrap();
    marks
        .record(&[mark("POSTS", 6, 9), mark("DLQ", 1, 1)])
        .await
        .unwrap();
    marks.record(&[mark("POSTS", 7, 9)]).await.unwrap();
    let all = [mark("DLQ", 1, 1), mark("POSTS", 7, 3), push.clone()];
    assert_eq!(marks.all().await.unwrap(), all);
    marks.record(&[mark("POSTS", 8, 2)]).await.unwrap();
    drop(marks);
    engine.reopen().await;
    let all = [mark("DLQ", 1, 1), mark("POSTS", 8, 2), push];
    assert_eq!(engine.stores().stream_marks.all().await.unwrap(), all);
}
