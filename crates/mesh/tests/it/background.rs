use std::sync::{Arc, Mutex};

use herald_mesh::consumers::{self, Kind};
use herald_mesh::{Background, Config, Mesh, Redrive, Settle, Subject};
use herald_model::Lane;
use herald_model::time::Micros;

use prost::Message as _;

use crate::harness::{Crew, Fixture, Script, chunk};

#[tokio::test]
async fn only_redriven_messages_are_worked_on_in_the_background() {
    let mut fixture = Fixture::start().await;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("background")
        .enable_all()
        .build()
        .unwrap();
    let config = Config::at(fixture.server.client_url());
    let connecting = runtime.spawn(async move { Mesh::connect(&config).await });
    let background = Background {
        mesh: connecting.await.unwrap().unwrap(),
        runtime: runtime.handle().clone(),
    };
    fixture.mesh = fixture.mesh.clone().with_background(background);

    let places = Arc::new(Mutex::new(Vec::new()));
    let (handler, mut seen) = Script::new({
        let places = Arc::clone(&places);
        move |delivery: herald_mesh::Delivery| {
            let thread = std::thread::current().name().unwrap_or_default().to_owned();
            places
                .lock()
                .unwrap()
                .push((delivery.redrive.is_some(), thread == "background"));
            async { Settle::Ack }
        }
    });
    let kinds = [
        consumers::timeline(Lane::Normal),
        consumers::redrive(Kind::Timeline),
    ];
    let crew = Crew::new(&fixture, kinds.map(|consumer| (consumer, handler.clone())));
    let subject = Subject::TimelineDeliver(Lane::Normal);
    fixture
        .mesh
        .publish(subject, Some("fresh"), &chunk(5))
        .await
        .unwrap();
    let redrive = Redrive {
        kind: Kind::Timeline,
        letter: 1,
        round: 1,
        subject,
        sequence: 7,
        published_at: Micros::now(),
        payload: chunk(5).encode_to_vec().into(),
        trace_parent: None,
        trace_state: None,
        id: "again".into(),
    };
    fixture.mesh.redrive(&redrive).await.unwrap();
    seen.next().await;
    seen.next().await;
    crew.stop().await;
    let mut places = places.lock().unwrap().clone();
    places.sort_unstable();
    assert_eq!(places, [(false, false), (true, true)]);
    runtime.shutdown_background();
}
