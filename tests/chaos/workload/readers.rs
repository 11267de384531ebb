//! Readers of timelines during the faults: posts may be missing, but none is duplicated, out of order, or visible after
//! the answer to its deletion.

use herald_proto::v1;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{READERS, Worker, reader};

/// Reads timelines until the load stops.
pub(super) async fn read_timelines(worker: Worker) {
    let mut random = StdRng::seed_from_u64(worker.seed);
    while !worker.stopped() {
        let user = reader(random.random_range(0..READERS));
        let request = v1::ListTimelineRequest {
            user_id: user.clone(),
            page_size: 200,
            ..Default::default()
        };
        let deleted = worker.journal.deleted_posts();
        let entries = worker
            .retry_until_answered("ListTimeline", |clients| {
                let request = request.clone();
                async move {
                    Ok(clients
                        .timelines()
                        .list_timeline(request)
                        .await?
                        .into_inner()
                        .entries)
                }
            })
            .await;
        let ids: Vec<u64> = entries
            .into_iter()
            .filter_map(|entry| Some(entry.post?.post_id))
            .collect();
        if !ids.is_sorted_by(|newer, older| newer > older) {
            worker.journal.record_violation(format!(
                "ListTimeline of {user} returned duplicate or unordered posts: {ids:?}"
            ));
        }
        if let Some(id) = ids.iter().find(|id| deleted.contains(id)) {
            let what = format!("ListTimeline of {user} returned post {id} after its deletion was answered");
            worker.journal.record_violation(what);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
