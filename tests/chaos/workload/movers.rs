//! Users who follow and unfollow while posts are fanned out.

use herald_proto::v1;
use jiff::Timestamp;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    AUTHORS, Change, READERS, Relation, Worker, author,
    graph::{MOVING_FROM, follow},
    reader,
};

/// Changes relations until the load stops. Each reader belongs to one mover, so the changes of a relation are ordered.
pub(super) async fn change_follows(worker: Worker, mover: usize, movers: usize) {
    let mut random = StdRng::seed_from_u64(worker.seed);
    let mine: Vec<usize> = (MOVING_FROM..READERS).filter(|r| r % movers == mover).collect();
    while !worker.stopped() {
        let r = *mine.choose(&mut random).expect("each mover has readers");
        let a = random.random_range(0..AUTHORS);
        let relation = [Relation::None, Relation::Follows, Relation::Notified][random.random_range(0..3)];
        let (started, started_at) = (worker.journal.next_time(), Timestamp::now());
        worker
            .retry_until_answered("Follow or Unfollow", |clients| async move {
                if relation == Relation::None {
                    let request = v1::UnfollowRequest {
                        follower_id: reader(r),
                        author_id: author(a),
                    };
                    clients.graph().unfollow(request).await.map(|_| ())
                } else {
                    let follow = Some(follow(r, a, relation));
                    clients
                        .graph()
                        .follow(v1::FollowRequest { follow })
                        .await
                        .map(|_| ())
                }
            })
            .await;
        let (ended, answered_at) = (worker.journal.next_time(), Timestamp::now());
        worker.journal.record_change(
            r,
            a,
            Change {
                relation,
                started,
                started_at,
                ended,
                answered_at,
            },
        );
        tokio::time::sleep(std::time::Duration::from_millis(random.random_range(10..100))).await;
    }
}
