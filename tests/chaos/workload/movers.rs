//! Followers who come and go while posts are fanned out.

use herald_proto::v1;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    AUTHORS, Change, READERS, Tie, Worker, author,
    graph::{MOVING_FROM, follow},
    reader,
};

/// Changes ties until it is stopped. A pair of reader and author belongs to one mover, so its changes have an order.
pub(super) async fn come_and_go(worker: Worker, mover: usize, movers: usize) {
    let mut random = StdRng::seed_from_u64(worker.seed);
    let mine: Vec<usize> = (MOVING_FROM..READERS).filter(|r| r % movers == mover).collect();
    while !worker.stopped() {
        let r = *mine.choose(&mut random).expect("each mover has readers");
        let a = random.random_range(0..AUTHORS);
        let tie = [Tie::None, Tie::Follows, Tie::Bell][random.random_range(0..3)];
        let started = worker.journal.now();
        worker
            .insist("Follow or Unfollow", |clients| async move {
                if tie == Tie::None {
                    let request = v1::UnfollowRequest {
                        follower_id: reader(r),
                        author_id: author(a),
                    };
                    clients.graph().unfollow(request).await.map(|_| ())
                } else {
                    let follow = Some(follow(r, a, tie));
                    clients
                        .graph()
                        .follow(v1::FollowRequest { follow })
                        .await
                        .map(|_| ())
                }
            })
            .await;
        let ended = worker.journal.now();
        worker.journal.changed(r, a, Change { tie, started, ended });
        tokio::time::sleep(std::time::Duration::from_millis(random.random_range(10..100))).await;
    }
}
