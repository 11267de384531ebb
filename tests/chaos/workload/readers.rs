//! Readers who look at timelines while all this happens: whatever is missing yet, nothing is there twice, out of
//! order, or after its deletion was answered.

use herald_proto::v1;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{READERS, Worker, reader};

/// Reads timelines until it is stopped.
pub(super) async fn read(worker: Worker) {
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
            .insist("ListTimeline", |clients| {
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
            worker.journal.wrong(format!(
                "{user} was shown a timeline that repeats or is out of order: {ids:?}"
            ));
        }
        if let Some(id) = ids.iter().find(|id| deleted.contains(id)) {
            let what = format!("{user} was shown post {id} after its deletion was answered");
            worker.journal.wrong(what);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
