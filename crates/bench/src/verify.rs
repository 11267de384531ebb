//! Checks that no delivery is missing or duplicated: graph, ledger and timelines must agree.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt, stream};
use herald_cli::{
    client::{Client, OperatorClient},
    failure::Failure,
};
use herald_model::{PostId, UserKey};
use herald_proto::v1;
use herald_store::Stores;
use serde::Serialize;

use super::{graph::Graph, load::Submitted, setup::Data};

/// Calls in flight while the ledger is read.
const LEDGER_IN_FLIGHT: usize = 64;
/// Timelines in one read of the store.
const SCAN_USERS: usize = 10_000;
/// Entries that a timeline keeps (default of `store.timelines.entries_max`); older ones are trimmed.
const TIMELINE_ENTRIES_MAX: usize = 800;

/// Sums of the ledger over all posts.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct LedgerSums {
    /// Planned timeline deliveries.
    pub(super) timeline_targeted: u64,
    /// Recorded timeline deliveries.
    pub(super) timeline_delivered: u64,
    /// Planned pushes.
    pub(super) push_targeted: u64,
    /// Recorded pushes.
    pub(super) push_delivered: u64,
    /// Pushes that expired before they were sent.
    pub(super) push_expired: u64,
    /// Posts whose counts differ from the graph or whose deliveries are not all settled.
    pub(super) wrong_posts: u64,
}

/// Timelines on disk compared with the graph.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct StoreSums {
    /// Timeline entries found.
    pub(super) deliveries: u64,
    /// Expected entries that are missing.
    pub(super) missing: u64,
    /// Entries that are not expected.
    pub(super) extra: u64,
}

/// Reads the delivery of every post from the ledger and compares it with the graph.
pub(super) async fn ledger(
    client: &Client,
    graph: &Graph,
    posts: &[Submitted],
) -> Result<LedgerSums, Failure> {
    stream::iter(
        posts
            .iter()
            .map(|post| (post.post_id, graph.followers[post.author as usize].len() as u64)),
    )
    .map(|(post_id, followers)| {
        let client = client.clone();
        async move {
            let request = client.request(v1::GetDeliveryRequest { post_id });
            let answer = client
                .deliveries()
                .get_delivery(request)
                .await
                .map_err(Failure::from)?
                .into_inner();
            Ok::<_, Failure>((answer, followers))
        }
    })
    .buffer_unordered(LEDGER_IN_FLIGHT)
    .try_fold(LedgerSums::default(), |sums, (answer, followers)| async move {
        Ok(add_delivery(sums, &answer, followers))
    })
    .await
}

fn add_delivery(mut sums: LedgerSums, answer: &v1::GetDeliveryResponse, followers: u64) -> LedgerSums {
    let mut right = answer.planned;
    for channel in &answer.channels {
        let settled = channel.targeted_count
            == channel.delivered_count
                + channel.suppressed_count
                + channel.expired_count
                + channel.dead_count;
        match channel.channel() {
            v1::Channel::Timeline => {
                sums.timeline_targeted += channel.targeted_count;
                sums.timeline_delivered += channel.delivered_count;
                right &=
                    settled && channel.targeted_count == followers && channel.delivered_count == followers;
            }
            v1::Channel::Push => {
                sums.push_targeted += channel.targeted_count;
                sums.push_delivered += channel.delivered_count;
                sums.push_expired += channel.expired_count;
                right &= settled;
            }
            v1::Channel::Unspecified => right = false,
        }
    }
    sums.wrong_posts += u64::from(!right);
    sums
}

/// Result of an audit.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct AuditSums {
    /// Deliveries checked.
    pub(super) deliveries: u64,
    /// Findings reported.
    pub(super) findings: u64,
    /// Duration.
    pub(super) seconds: f64,
    /// Deliveries checked per second.
    pub(super) deliveries_per_second: f64,
}

/// Runs the server's audit over all posts.
pub(super) async fn audit(client: &OperatorClient) -> Result<AuditSums, Failure> {
    let request = v1::RunAuditRequest::default();
    let mut answers = client.audit().run_audit(request).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if let Some(v1::run_audit_response::Event::Summary(summary)) = answer.event {
            let deliveries: u64 = summary
                .channels
                .iter()
                .map(|channel| channel.targeted_count)
                .sum();
            return Ok(AuditSums {
                deliveries,
                findings: summary.findings.iter().map(|found| found.count).sum(),
                seconds: summary.seconds,
                deliveries_per_second: deliveries as f64 / summary.seconds.max(1e-6),
            });
        }
    }
    Err(Failure::failed(
        "the server closed the audit stream without a summary; see the server's log",
    ))
}

/// Reads every timeline from the store of a stopped server and compares it with the graph.
pub(super) async fn store(data: &Data, graph: &Graph, posts: &[Submitted]) -> Result<StoreSums, Failure> {
    let opened = data.engine.open(&data.dir).await;
    let engine =
        opened.map_err(|error| Failure::failed(format!("can't open the store to check it: {error}")))?;
    let expected = expected_timelines(graph, posts);
    let sums = scan(&engine.stores(), &expected).await;
    engine
        .close()
        .await
        .map_err(|error| Failure::failed(format!("can't close the store: {error}")))?;
    sums.map_err(|error| Failure::failed(format!("can't read the timelines: {error}")))
}

/// Expected post ids of each user's timeline, ascending.
fn expected_timelines(graph: &Graph, posts: &[Submitted]) -> Vec<Vec<u64>> {
    let mut of_author = HashMap::<u32, Vec<u64>>::new();
    for post in posts {
        of_author.entry(post.author).or_default().push(post.post_id);
    }
    let mut expected = vec![Vec::new(); graph.users as usize];
    for (author, posts) in of_author {
        for follower in &graph.followers[author as usize] {
            expected[*follower as usize].extend_from_slice(&posts);
        }
    }
    for posts in &mut expected {
        posts.sort_unstable();
        posts.drain(..posts.len().saturating_sub(TIMELINE_ENTRIES_MAX));
    }
    expected
}

async fn scan(stores: &Stores, expected: &[Vec<u64>]) -> herald_store::Result<StoreSums> {
    let mut sums = StoreSums::default();
    let last = stores.users.last_key().await?.map_or(0, |key| key.0);
    let keys: Vec<UserKey> = (1..=last).map(UserKey).collect();
    for keys in keys.chunks(SCAN_USERS) {
        let timelines = stores.timelines.read(keys).await?;
        let ids = stores.users.ids(keys).await?;
        for (id, timeline) in ids.into_iter().zip(timelines) {
            let found = timeline.posts;
            // The timeline of a user who isn't in the graph is entirely unexpected.
            let number = id.and_then(|id| id.as_str().strip_prefix('u')?.parse::<usize>().ok());
            let wanted = number
                .and_then(|number| expected.get(number))
                .map_or(&[][..], Vec::as_slice);
            let both = count_common(wanted, &found);
            sums.deliveries += found.len() as u64;
            sums.extra += found.len() as u64 - both;
            // Counts found entries here; subtracted from all expected entries below.
            sums.missing += both;
        }
    }
    let all: u64 = expected.iter().map(|posts| posts.len() as u64).sum();
    sums.missing = all - sums.missing;
    Ok(sums)
}

/// Number of entries that two ascending lists have in common.
fn count_common(wanted: &[u64], found: &[PostId]) -> u64 {
    let mut found = found.iter().map(|post| post.0).peekable();
    let mut both = 0;
    for post in wanted {
        while found.next_if(|f| f < post).is_some() {}
        both += u64::from(found.next_if_eq(post).is_some());
    }
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_unexpected_entries_are_not_counted() {
        let posts = |ids: &[u64]| ids.iter().copied().map(PostId).collect::<Vec<_>>();
        assert_eq!(count_common(&[1, 2, 5], &posts(&[1, 2, 5])), 3);
        assert_eq!(count_common(&[1, 2, 5], &posts(&[1, 5])), 2);
        assert_eq!(count_common(&[1, 2, 5], &posts(&[1, 2, 3, 5])), 3);
        assert_eq!(count_common(&[], &posts(&[3])), 0);
    }
}
