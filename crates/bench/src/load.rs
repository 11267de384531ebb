//! The load: a graph, devices, and posts.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use herald_cli::{client::Client, failure::Failure, output::lane_number, time::duration_to_proto};
use herald_model::{Lane, time::Timestamp};
use herald_proto::v1;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

use super::graph::Graph;

/// Follows in one message.
const IMPORT_BATCH: usize = 10_000;
/// Calls in flight when devices are registered.
const REGISTER_IN_FLIGHT: usize = 64;
/// Streams that posts are sent on when they go as fast as possible.
const BULK_STREAMS: usize = 4;

/// A submitted post: when it should have been sent, when it was answered, and what it became.
#[derive(Debug, Clone, Copy)]
pub(super) struct Submitted {
    pub(super) post_id: u64,
    pub(super) author: u32,
    /// By the schedule, not by when there was time for it: a late send counts as latency.
    pub(super) intended: Timestamp,
    /// None on bulk streams, which answer once.
    pub(super) answered: Option<Timestamp>,
}

/// Whether a user takes part in push: every `1/share`th one.
pub(super) fn opted_in(user: u32, share: f64) -> bool {
    // Spread over all users, the same each time.
    f64::from(user.wrapping_mul(2_654_435_761) >> 8) / f64::from(1_u32 << 24) < share
}

/// Imports the graph; `progress` is told of each batch.
pub(super) async fn import(
    client: &Client,
    graph: &Arc<Graph>,
    push_share: f64,
    progress: impl Fn(u64) + Send + 'static,
) -> Result<(), Failure> {
    let (sender, receiver) = mpsc::channel(4);
    let source = graph.clone();
    let feed = tokio::spawn(async move {
        let mut batch = Vec::with_capacity(IMPORT_BATCH);
        for (author, followers) in (0_u32..).zip(&source.followers) {
            for follower in followers {
                batch.push(v1::Follow {
                    follower_id: Graph::id(*follower),
                    author_id: Graph::id(author),
                    notify: opted_in(*follower, push_share),
                });
                if batch.len() == IMPORT_BATCH {
                    progress(batch.len() as u64);
                    let follows = std::mem::replace(&mut batch, Vec::with_capacity(IMPORT_BATCH));
                    if sender.send(v1::ImportFollowsRequest { follows }).await.is_err() {
                        return;
                    }
                }
            }
        }
        progress(batch.len() as u64);
        // When nobody receives, the call has failed and says why.
        let _ = sender.send(v1::ImportFollowsRequest { follows: batch }).await;
    });
    let answer = client
        .graph()
        .import_follows(ReceiverStream::new(receiver))
        .await
        .map_err(Failure::from)?
        .into_inner();
    feed.abort();
    if answer.imported_count == graph.follow_count() {
        Ok(())
    } else {
        Err(Failure::failed(format!(
            "{} of {} follows were imported",
            answer.imported_count,
            graph.follow_count()
        )))
    }
}

/// Registers one webhook for each user who takes part in push.
pub(super) async fn register(
    client: &Client,
    users: impl Iterator<Item = u32>,
    webhook: impl Fn(u32) -> v1::Webhook,
) -> Result<(), Failure> {
    stream::iter(users.map(|user| (user, webhook(user))))
        .map(|(user, webhook)| {
            let client = client.clone();
            async move {
                let address = v1::register_device_request::Address::Webhook(webhook);
                client.register_device(Graph::id(user), address).await
            }
        })
        .buffer_unordered(REGISTER_IN_FLIGHT)
        .try_for_each(|_| std::future::ready(Ok(())))
        .await
}

/// Posts to send: the author of each.
pub(super) type Authors = Vec<u32>;

/// What kind of posts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kind {
    /// In which lane.
    pub(super) lane: Lane,
    /// How long a push is worth sending; the server's default without it.
    pub(super) push_ttl: Option<Duration>,
}

fn request(index: usize, author: u32, kind: Kind) -> v1::SubmitPostRequest {
    v1::SubmitPostRequest {
        author_id: Graph::id(author),
        text: format!("benchmark post {index}, long enough to look like a short message that somebody wrote"),
        lane: lane_number(kind.lane),
        push_ttl: kind.push_ttl.map(duration_to_proto),
        ..v1::SubmitPostRequest::default()
    }
}

/// Sends posts at a fixed rate, each when it is due, whether or not earlier ones were answered (an open loop).
pub(super) async fn at_rate(
    client: &Client,
    authors: &Authors,
    rate: f64,
    kind: Kind,
    progress: impl Fn(u64),
) -> Result<Vec<Submitted>, Failure> {
    let (start, start_time) = (tokio::time::Instant::now(), Timestamp::now());
    let mut calls = JoinSet::new();
    for (index, author) in authors.iter().copied().enumerate() {
        let after = Duration::from_secs_f64(index as f64 / rate);
        tokio::time::sleep_until(start + after).await;
        let intended = start_time.plus(after);
        let client = client.clone();
        calls.spawn(async move {
            let answer = client
                .posts()
                .submit_post(client.request(request(index, author, kind)))
                .await?;
            let answered = Some(Timestamp::now());
            let post_id = answer.into_inner().post_id;
            Ok::<_, tonic::Status>(Submitted {
                post_id,
                author,
                intended,
                answered,
            })
        });
        progress(1);
    }
    let mut submitted = Vec::with_capacity(authors.len());
    while let Some(call) = calls.join_next().await {
        let call = call.map_err(|error| Failure::failed(format!("a call died: {error}")))?;
        submitted.push(call.map_err(Failure::from)?);
    }
    Ok(submitted)
}

/// Sends posts as fast as the server takes them, on a few bulk streams.
pub(super) async fn in_bulk(
    client: &Client,
    authors: &Authors,
    kind: Kind,
    progress: impl Fn(u64) + Clone + Send + 'static,
) -> Result<Vec<Submitted>, Failure> {
    let mut streams = JoinSet::new();
    for part in authors.chunks(authors.len().div_ceil(BULK_STREAMS).max(1)) {
        let (client, part, progress) = (client.clone(), part.to_vec(), progress.clone());
        streams.spawn(async move { bulk_stream(&client, part, kind, progress).await });
    }
    let mut submitted = Vec::with_capacity(authors.len());
    while let Some(part) = streams.join_next().await {
        let part = part.map_err(|error| Failure::failed(format!("a stream died: {error}")))?;
        submitted.extend(part?);
    }
    Ok(submitted)
}

async fn bulk_stream(
    client: &Client,
    authors: Vec<u32>,
    kind: Kind,
    progress: impl Fn(u64) + Send + 'static,
) -> Result<Vec<Submitted>, Failure> {
    let (sender, receiver) = mpsc::channel(64);
    let feed = tokio::spawn({
        let authors = authors.clone();
        async move {
            let mut sent = Vec::with_capacity(authors.len());
            for (index, author) in authors.into_iter().enumerate() {
                let post = v1::SubmitPostsRequest {
                    post: Some(request(index, author, kind)),
                };
                if sender.send(post).await.is_err() {
                    break;
                }
                sent.push(Timestamp::now());
                progress(1);
            }
            sent
        }
    });
    let answer = client
        .posts()
        .submit_posts(ReceiverStream::new(receiver))
        .await
        .map_err(Failure::from)?
        .into_inner();
    let sent = feed
        .await
        .map_err(|error| Failure::failed(format!("a stream died: {error}")))?;
    if let Some(failure) = answer.failures.first() {
        return Err(Failure::failed(format!(
            "{} posts were refused, the first because: {}",
            answer.failed_count, failure.message
        )));
    }
    Ok(answer
        .post_ids
        .into_iter()
        .zip(authors)
        .zip(sent)
        .map(|((post_id, author), intended)| Submitted {
            post_id,
            author,
            intended,
            answered: None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::opted_in;

    #[test]
    fn the_share_is_about_as_asked_for() {
        for share in [0.0, 0.05, 0.5, 1.0] {
            let count = (0..100_000).filter(|user| opted_in(*user, share)).count() as f64;
            assert!((count / 100_000.0 - share).abs() < 0.01, "{share}: {count}");
        }
    }
}
