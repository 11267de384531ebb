//! Proves that nothing was lost and nothing was delivered twice: what the graph asks for, what the ledger says, and what
//! is on the disk must be the same.

use std::{collections::HashMap, path::Path};

use futures::{StreamExt, TryStreamExt, stream};
use herald_cli::{client::Client, failure::Failure};
use herald_model::{PostId, UserKey};
use herald_proto::v1;
use herald_store::{Stores, embedded};
use serde::Serialize;

use super::{graph::Graph, load::Submitted};

/// Calls in flight while the ledger is read.
const LEDGER_IN_FLIGHT: usize = 64;
/// Timelines in one read of the store.
const SCAN_USERS: usize = 10_000;
/// What a timeline keeps; older entries are trimmed on purpose.
const TIMELINE_ENTRIES_MAX: usize = 800;

/// What the ledger says over all posts.
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
    /// Pushes that were too late to be sent.
    pub(super) push_expired: u64,
    /// Posts whose counts aren't what the graph asks for.
    pub(super) wrong_posts: u64,
}

/// What the timelines on the disk say, against the graph.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct StoreSums {
    /// Pairs of follower and post found.
    pub(super) deliveries: u64,
    /// Pairs that must be there and aren't.
    pub(super) missing: u64,
    /// Pairs that must not be there and are.
    pub(super) extra: u64,
}

/// Reads the delivery of every post.
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
        Ok(add(sums, &answer, followers))
    })
    .await
}

fn add(mut sums: LedgerSums, answer: &v1::GetDeliveryResponse, followers: u64) -> LedgerSums {
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

/// What an audit came to.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct AuditSums {
    /// Deliveries checked.
    pub(super) deliveries: u64,
    /// Things that are wrong.
    pub(super) findings: u64,
    /// How long it took.
    pub(super) seconds: f64,
    /// The first by the second.
    pub(super) deliveries_per_second: f64,
}

/// Lets the server audit everything.
pub(super) async fn audit(client: &Client) -> Result<AuditSums, Failure> {
    let request = v1::RunAuditRequest::default();
    let mut news = client.audit().run_audit(request).await?.into_inner();
    while let Some(said) = news.message().await? {
        if let Some(v1::run_audit_response::Event::Summary(summary)) = said.event {
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
    Err(Failure::failed("the server ended the audit without a summary"))
}

/// Reads every timeline from the disk of a server that has ended, pair by pair against the graph.
pub(super) async fn store(data_dir: &Path, graph: &Graph, posts: &[Submitted]) -> Result<StoreSums, Failure> {
    let config = embedded::Config {
        data_dir: data_dir.into(),
        ..embedded::Config::default()
    };
    let engine = embedded::Embedded::open(&config)
        .map_err(|error| Failure::failed(format!("the store can't be opened to check it: {error}")))?;
    let expected = expected(graph, posts);
    let sums = scan(&engine.stores(), &expected).await;
    engine
        .close()
        .map_err(|error| Failure::failed(format!("the store can't be closed: {error}")))?;
    sums.map_err(|error| Failure::failed(format!("the timelines can't be read: {error}")))
}

/// For each user the posts that must be on their timeline, ascending.
fn expected(graph: &Graph, posts: &[Submitted]) -> Vec<Vec<u64>> {
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
    let mut after: Option<UserKey> = None;
    loop {
        let timelines = stores.timelines.scan(after, SCAN_USERS).await?;
        let Some((last, _)) = timelines.last() else { break };
        after = Some(*last);
        let keys: Vec<UserKey> = timelines.iter().map(|(user, _)| *user).collect();
        let ids = stores.users.ids(&keys).await?;
        for (id, (_, found)) in ids.into_iter().zip(timelines) {
            // A timeline of nobody the graph knows is extra as a whole.
            let number = id.and_then(|id| id.as_str().strip_prefix('u')?.parse::<usize>().ok());
            let wanted = number
                .and_then(|number| expected.get(number))
                .map_or(&[][..], Vec::as_slice);
            let both = in_both(wanted, &found);
            sums.deliveries += found.len() as u64;
            sums.extra += found.len() as u64 - both;
            // Missing ones are counted as what remains of all that is expected, below.
            sums.missing += both;
        }
    }
    let all: u64 = expected.iter().map(|posts| posts.len() as u64).sum();
    sums.missing = all - sums.missing;
    Ok(sums)
}

/// How many of two ascending lists' entries are in both.
fn in_both(wanted: &[u64], found: &[PostId]) -> u64 {
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
    fn a_lost_and_a_phantom_entry_are_both_seen() {
        let posts = |ids: &[u64]| ids.iter().copied().map(PostId).collect::<Vec<_>>();
        assert_eq!(in_both(&[1, 2, 5], &posts(&[1, 2, 5])), 3);
        assert_eq!(in_both(&[1, 2, 5], &posts(&[1, 5])), 2);
        assert_eq!(in_both(&[1, 2, 5], &posts(&[1, 2, 3, 5])), 3);
        assert_eq!(in_both(&[], &posts(&[3])), 0);
    }
}
