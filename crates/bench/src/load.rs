//! Generates load: imports a graph, registers devices, submits posts.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use herald_cli::{client::Client, failure::Failure, output::lane_number, time::duration_to_proto};
use herald_model::{Lane, time::Timestamp};
use herald_proto::v1;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

use super::graph::Graph;

/// Follows per message.
const IMPORT_BATCH: usize = 10_000;
/// Device registrations in flight.
const REGISTER_IN_FLIGHT: usize = 64;
/// Parallel SubmitPosts streams of a bulk submit.
const BULK_STREAMS: usize = 4;

/// A submitted post.
#[derive(Debug, Clone, Copy)]
pub(super) struct Submitted {
    pub(super) post_id: u64,
    pub(super) author: u32,
    /// Scheduled time, not the time of the call: a late call counts as latency.
    pub(super) scheduled: Timestamp,
    /// Time of the answer; `None` for a bulk submit, which has one answer for all posts.
    pub(super) answered: Option<Timestamp>,
}

/// Whether a user has a device and wants pushes: true for a share (0 to 1) of the users.
pub(super) fn wants_push(user: u32, share: f64) -> bool {
    // Multiplicative hash: deterministic and spread over all users.
    f64::from(user.wrapping_mul(2_654_435_761) >> 8) / f64::from(1_u32 << 24) < share
}

/// Imports the graph; reports the size of each batch to `progress`.
pub(super) async fn import_graph(
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
                    notify: Some(wants_push(*follower, push_share)),
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
        // If the receiver is gone, the call has failed and returns the error.
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
            "only {} of {} follows were imported",
            answer.imported_count,
            graph.follow_count()
        )))
    }
}

/// Registers one webhook for each user.
pub(super) async fn register_webhooks(
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

/// Authors of the posts to submit, in order.
pub(super) type Authors = Vec<u32>;

/// Options of submitted posts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PostOptions {
    /// Lane of the posts.
    pub(super) lane: Lane,
    /// Time to live of the pushes; `None` uses the server's default.
    pub(super) push_ttl: Option<Duration>,
}

fn request(index: usize, author: u32, options: PostOptions) -> v1::SubmitPostRequest {
    v1::SubmitPostRequest {
        author_id: Graph::id(author),
        text: format!("benchmark post {index}, long enough to look like a short message that somebody wrote"),
        lane: lane_number(options.lane),
        push_ttl: options.push_ttl.map(duration_to_proto),
        ..v1::SubmitPostRequest::default()
    }
}

/// Submits posts at a fixed rate per second without waiting for earlier answers (open loop).
pub(super) async fn submit_at_rate(
    client: &Client,
    authors: &Authors,
    rate: f64,
    options: PostOptions,
    progress: impl Fn(u64),
) -> Result<Vec<Submitted>, Failure> {
    let (start, start_time) = (tokio::time::Instant::now(), Timestamp::now());
    let mut calls = JoinSet::new();
    for (index, author) in authors.iter().copied().enumerate() {
        let after = Duration::from_secs_f64(index as f64 / rate);
        tokio::time::sleep_until(start + after).await;
        let scheduled = start_time.plus(after);
        let client = client.clone();
        calls.spawn(async move {
            let answer = client
                .posts()
                .submit_post(client.request(request(index, author, options)))
                .await?;
            let answered = Some(Timestamp::now());
            let post_id = answer.into_inner().post_id;
            Ok::<_, tonic::Status>(Submitted {
                post_id,
                author,
                scheduled,
                answered,
            })
        });
        progress(1);
    }
    let mut submitted = Vec::with_capacity(authors.len());
    while let Some(call) = calls.join_next().await {
        let call = call.map_err(|error| Failure::failed(format!("a SubmitPost task failed: {error}")))?;
        submitted.push(call.map_err(Failure::from)?);
    }
    Ok(submitted)
}

/// Submits posts as fast as the server accepts them, on [`BULK_STREAMS`] streams.
pub(super) async fn submit_bulk(
    client: &Client,
    authors: &Authors,
    options: PostOptions,
    progress: impl Fn(u64) + Clone + Send + 'static,
) -> Result<Vec<Submitted>, Failure> {
    let mut streams = JoinSet::new();
    for part in authors.chunks(authors.len().div_ceil(BULK_STREAMS).max(1)) {
        let (client, part, progress) = (client.clone(), part.to_vec(), progress.clone());
        streams.spawn(async move { bulk_stream(&client, part, options, progress).await });
    }
    let mut submitted = Vec::with_capacity(authors.len());
    while let Some(part) = streams.join_next().await {
        let part = part.map_err(|error| Failure::failed(format!("a SubmitPosts task failed: {error}")))?;
        submitted.extend(part?);
    }
    Ok(submitted)
}

async fn bulk_stream(
    client: &Client,
    authors: Vec<u32>,
    options: PostOptions,
    progress: impl Fn(u64) + Send + 'static,
) -> Result<Vec<Submitted>, Failure> {
    let (sender, receiver) = mpsc::channel(64);
    let feed = tokio::spawn({
        let authors = authors.clone();
        async move {
            let mut sent = Vec::with_capacity(authors.len());
            for (index, author) in authors.into_iter().enumerate() {
                let post = v1::SubmitPostsRequest {
                    post: Some(request(index, author, options)),
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
        .map_err(|error| Failure::failed(format!("a SubmitPosts task failed: {error}")))?;
    if let Some(failure) = answer.failures.first() {
        return Err(Failure::failed(format!(
            "{} posts were refused, the first one with: {}",
            answer.failed_count,
            failure.status.as_ref().map_or("", |status| &status.message)
        )));
    }
    Ok(answer
        .post_ids
        .into_iter()
        .zip(authors)
        .zip(sent)
        .map(|((post_id, author), scheduled)| Submitted {
            post_id,
            author,
            scheduled,
            answered: None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::wants_push;

    #[test]
    fn the_share_of_push_users_matches() {
        for share in [0.0, 0.05, 0.5, 1.0] {
            let count = (0..100_000).filter(|user| wants_push(*user, share)).count() as f64;
            assert!((count / 100_000.0 - share).abs() < 0.01, "{share}: {count}");
        }
    }
}
