//! Deadlines of forwarded calls.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use herald_gateway::Config;
use herald_proto::v1;
use tonic::{Code, Request, Status};

use crate::harness::{Setup, World, reason, with_timeout};

/// Time of a forwarded call without a deadline.
const LIMIT: Duration = Duration::from_millis(500);

async fn start() -> World {
    let config = Config {
        forward_deadline_ms: LIMIT.as_millis() as u64,
        ..Setup::default().config
    };
    let setup = Setup {
        config,
        ..Setup::default()
    };
    World::start_with(setup).await
}

fn follow() -> v1::Follow {
    v1::Follow {
        follower_id: "1".into(),
        author_id: "107".into(),
        notify: None,
    }
}

fn assert_expired(status: &Status) {
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(reason(status), "DEADLINE_EXCEEDED");
    assert!(status.message().starts_with("graph "), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_a_deadline_gets_the_default() {
    let world = start().await;
    let mut client = world.graph_client();
    let timeout_ms = || -> u64 {
        let header = world.graph.state.lock().timeout.take().expect("a deadline");
        header.strip_suffix('m').expect("milliseconds").parse().unwrap()
    };
    let request = v1::FollowRequest {
        follow: Some(follow()),
    };
    client.follow(request.clone()).await.unwrap();
    let left = timeout_ms();
    assert!((1..=LIMIT.as_millis() as u64).contains(&left), "{left}");

    world.graph.state.lock().stalled = true;
    let began = Instant::now();
    let refused = with_timeout("the call ends", client.follow(request.clone())).await;
    assert_expired(&refused.unwrap_err());
    assert!(began.elapsed() >= LIMIT, "{:?}", began.elapsed());

    // The caller's own deadline is longer, and passed on.
    world.graph.state.lock().stalled = false;
    let mut patient = Request::new(request);
    patient.set_timeout(Duration::from_secs(20));
    client.follow(patient).await.unwrap();
    let left = timeout_ms();
    assert!((10_000..=20_000).contains(&left), "{left}");
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_lasts_as_long_as_its_requests_are_taken() {
    let world = start().await;
    let mut client = world.graph_client();
    let batch = v1::ImportFollowsRequest {
        follows: vec![follow(); 1_000],
    };
    // A caller that takes longer than the limit, also between two requests.
    let slow = stream::iter(vec![batch.clone(); 3]).then(|batch| async {
        tokio::time::sleep(LIMIT * 3 / 2).await;
        batch
    });
    let imported = with_timeout("the import ends", client.import_follows(slow)).await;
    assert_eq!(imported.unwrap().into_inner().imported_count, 3_000);
    assert_eq!(world.graph.state.lock().timeout, None);

    // A service that takes no requests, of a caller who has endless ones.
    world.graph.state.lock().stalled = true;
    let endless = stream::repeat(batch.clone());
    let refused = with_timeout("the import ends", client.import_follows(endless)).await;
    assert_expired(&refused.unwrap_err());
    // A service that takes all requests and does not answer.
    let refused = with_timeout("the import ends", client.import_follows(stream::iter([]))).await;
    assert_expired(&refused.unwrap_err());
    world.stop().await.unwrap();
}
