//! The demo of `herald up --demo`: imports a social graph and submits posts by its users.

use std::time::Duration;

use herald_cli::{client::Client, failure::Failure, output::Output};
use herald_proto::v1;
use rand::{Rng, seq::IndexedRandom};

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

/// Imports the graph, then submits posts until the future is dropped.
pub(crate) async fn run(server: String, output: Output) -> Result<(), Failure> {
    let client = Client::connect(&server, DEADLINE).await?;
    let edges: Vec<(&str, &str)> = EDGES.lines().filter_map(|line| line.split_once(' ')).collect();
    output.note(&format!("demo: importing {} follows", 2 * edges.len()));
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
        loaded.imported_count, loaded.unchanged_count
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
        notify: false,
    }
}
