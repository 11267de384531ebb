//! The demo of `herald up --demo`: imports a social graph and submits posts by its users.

use std::time::Duration;

use herald_cli::{
    caller::{Caller, CallerTls, Credential},
    client::Client,
    failure::{Failure, Kind},
    output::{Output, count},
};
use herald_proto::v1::{
    self, Device, ListDevicesRequest, Webhook, device::Address as Listed, register_device_request::Address,
};
use herald_push_sink::{Running, Sink};
use rand::{Rng, seq::IndexedRandom};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Code;

/// `data/README.md` names the source.
const EDGES: &str = include_str!("../data/facebook-edges.txt");

/// Follows per message of the import.
const IMPORT_BATCH: usize = 5_000;
/// Time between two posts.
const POST_INTERVAL: Duration = Duration::from_millis(100);
/// Deadline of each unary call.
const DEADLINE: Duration = Duration::from_secs(30);

const TEXTS: [&str; 8] = [
    "good morning",
    "has anybody read the paper I posted yesterday?",
    "lunch at the usual place, 12:30",
    "the build is green again",
    "looking for a flat, two rooms, ideas welcome",
    "what a game that was",
    "new photos from the trip are up",
    "who is in for a walk on Sunday?",
];

/// The user whose pushes the demo receives: some authors that this user follows post every two seconds.
const PUSH_USER: &str = "348";
/// The path segment of the demo's webhook, by which a device of an earlier demo is found.
const SINK_NAME: &str = "herald-demo";
/// Limit for the removal of the device at shutdown.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// Imports the graph, then submits posts until `shutdown`. With `pushes` it also registers a push receiver for one user,
/// prints each push, and removes the device at the end.
pub(crate) async fn run(
    server: String,
    credential: Credential,
    tls: CallerTls,
    output: Output,
    pushes: bool,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let client = Client::connect(
        &server,
        Caller {
            deadline: DEADLINE,
            credential,
            tls,
        },
    )
    .await?;
    if !pushes {
        return shutdown
            .run_until_cancelled(import_and_post(&client, output))
            .await
            .unwrap_or(Ok(()));
    }
    let sink = Running::start()
        .await
        .map_err(|error| Failure::from(anyhow::Error::new(error)))?;
    let mut received = sink.subscribe();
    let registered = register(&client, &sink).await?;
    output.note(&format!(
        "demo: registered a push receiver for user {PUSH_USER}, and shows each push to it"
    ));
    let work = async {
        tokio::select! {
            outcome = import_and_post(&client, output) => outcome,
            printed = crate::pushes::print(&mut received, output) => printed,
        }
    };
    let outcome = shutdown.run_until_cancelled(work).await.unwrap_or(Ok(()));
    let removed = timeout(
        REMOVE_LIMIT,
        crate::pushes::remove_devices(vec![registered], &client),
    );
    outcome.and(removed.await.unwrap_or_else(|_| {
        Err(Failure::new(
            Kind::TimedOut,
            "the device of the demo was not removed in time",
        ))
    }))
}

/// Registers the receiver, in place of that of an earlier demo that was killed.
async fn register(client: &Client, sink: &Sink) -> Result<Device, Failure> {
    let request = client.request(ListDevicesRequest {
        user_id: PUSH_USER.into(),
    });
    let devices = match client.devices().list_devices(request).await {
        Ok(response) => response.into_inner().devices,
        // The user is unknown before the first demo.
        Err(status) if status.code() == Code::NotFound => Vec::new(),
        Err(status) => return Err(status.into()),
    };
    let path = format!("/webhook/{SINK_NAME}");
    let is_earlier =
        |device: &Device| matches!(&device.address, Some(Listed::Webhook(hook)) if hook.url.ends_with(&path));
    let earlier = devices.into_iter().filter(is_earlier).collect();
    crate::pushes::remove_devices(earlier, client).await?;
    let webhook = sink.webhook(SINK_NAME);
    let address = Address::Webhook(Webhook {
        url: webhook.url,
        secret: webhook.secret,
    });
    client.register_device(PUSH_USER.into(), address).await
}

/// Imports the graph, then submits posts until the future is dropped.
async fn import_and_post(client: &Client, output: Output) -> Result<(), Failure> {
    let edges: Vec<(&str, &str)> = EDGES.lines().filter_map(|line| line.split_once(' ')).collect();
    output.note(&format!(
        "demo: importing {} follows",
        count(2 * edges.len() as u64)
    ));
    let batches: Vec<_> = edges
        .chunks(IMPORT_BATCH / 2)
        .map(|part| v1::ImportFollowsRequest {
            follows: part
                .iter()
                .flat_map(|(a, b)| [follow(a, b), follow(b, a)])
                .collect(),
        })
        .collect();
    let loaded = client
        .graph()
        .import_follows(tokio_stream::iter(batches))
        .await
        .map_err(Failure::from)?
        .into_inner();
    output.note(&format!(
        "demo: {} follows imported, {} unchanged; submitting 10 posts per second",
        count(loaded.imported_count),
        count(loaded.unchanged_count)
    ));
    let mut ticks = tokio::time::interval(POST_INTERVAL);
    loop {
        ticks.tick().await;
        // A random end of a random edge: the more edges a user has, the more often they post.
        let (author, text) = {
            let mut rng = rand::rng();
            let edge = edges.choose(&mut rng).copied().unwrap_or(("107", "1"));
            let author = if rng.random_bool(0.5) { edge.0 } else { edge.1 };
            (author, TEXTS.choose(&mut rng).copied().unwrap_or_default())
        };
        let post = v1::SubmitPostRequest {
            author_id: author.into(),
            text: text.into(),
            ..Default::default()
        };
        if let Err(status) = client.posts().submit_post(client.request(post)).await {
            // A full stream or a restart of the broker is transient: the loop goes on.
            tracing::warn!(
                error = status.message(),
                "a post of the demo was not accepted; the demo continues"
            );
        }
    }
}

fn follow(follower: &str, author: &str) -> v1::Follow {
    v1::Follow {
        follower_id: follower.into(),
        author_id: author.into(),
        notify: (follower == PUSH_USER).then_some(true),
    }
}
