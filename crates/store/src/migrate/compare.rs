//! Comparison of two stores through the traits.

use herald_model::{Channel, DeliveryState, FollowVersion, PostId, UserKey};

use crate::{
    ChunkRef, DeadLetterFilter, DeadLetterState, Error, ErrorKind, FollowerPage, Order, PostPlan, Result,
    Stores,
};

/// Maximum number of items that are read at a time.
const PER_READ: usize = 256;

/// Maximum number of followers and recipients in a page.
const PAGE: usize = 10_000;

/// Number of items that were compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Users, with their follows, followers, devices, preferences and timelines.
    pub users: u64,
    /// Posts, with their ledger and counts.
    pub posts: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Operations on dead letters.
    pub operations: u64,
}

/// Compares what two stores answer: all items, or an evenly spread sample of this number of each kind.
///
/// [`Corrupt`](ErrorKind::Corrupt) if an answer differs; the message names it.
pub async fn compare(old: &Stores, new: &Stores, sample: Option<usize>) -> Result<Compared> {
    let mut compared = Compared::default();
    let last = old.users.last_key().await?;
    same("the greatest key of a user", &last, &new.users.last_key().await?)?;
    let last = last.map_or(0, |key| key.0);
    let stride = stride(last.into(), sample);
    let users: Vec<UserKey> = (1..=last)
        .step_by(usize::try_from(stride).unwrap_or(usize::MAX))
        .map(UserKey)
        .collect();
    for users in users.chunks(PER_READ) {
        compare_users(old, new, users).await?;
        compared.users += users.len() as u64;
    }
    same(
        "the VAPID public key",
        &old.devices.vapid_key().await?.or(new.devices.vapid_key().await?),
        &new.devices.vapid_key().await?,
    )?;
    same(
        "whether there are Web Push devices",
        &old.devices.has_web_push().await?,
        &new.devices.has_web_push().await?,
    )?;
    same(
        "the API keys",
        &old.api_keys.all().await?,
        &new.api_keys.all().await?,
    )?;
    same(
        "the erasures",
        &old.erasures.list(None, usize::MAX).await?,
        &new.erasures.list(None, usize::MAX).await?,
    )?;
    compare_posts(old, new, sample, &mut compared).await?;
    let hours = old.totals.hour_totals(0, u32::MAX).await?;
    same(
        "the counts of all hours",
        &hours,
        &new.totals.hour_totals(0, u32::MAX).await?,
    )?;
    let files = |files: Vec<crate::IntendedFile>| {
        let owner = |file: crate::IntendedFile| (file.file, file.owner);
        files.into_iter().map(owner).collect::<Vec<_>>()
    };
    let (old_files, new_files) = (old.totals.intended().await?, new.totals.intended().await?);
    same("the announced files", &files(old_files), &files(new_files))?;
    compare_dead_letters(old, new, sample, &mut compared).await?;
    Ok(compared)
}

/// The step that picks about `sample` of `count` items.
fn stride(count: u64, sample: Option<usize>) -> u64 {
    sample.map_or(1, |sample| count.div_ceil(sample.max(1) as u64).max(1))
}

fn same<T: PartialEq>(what: &str, old: &T, new: &T) -> Result<()> {
    if old == new {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        format!("the stores differ: they give different answers for {what}"),
    ))
}

async fn compare_users(old: &Stores, new: &Stores, users: &[UserKey]) -> Result<()> {
    let range = format!(
        "the users {} to {}",
        users.first().map_or(0, |user| user.0),
        users.last().map_or(0, |user| user.0)
    );
    let of = |what: &str| format!("{what} of {range}");
    let ids = old.users.ids(users).await?;
    same(&of("the ids"), &ids, &new.users.ids(users).await?)?;
    let ids: Vec<_> = ids.into_iter().flatten().collect();
    same(
        &of("the keys"),
        &old.users.find(&ids).await?,
        &new.users.find(&ids).await?,
    )?;
    same(
        &of("the devices"),
        &old.devices.of(users).await?,
        &new.devices.of(users).await?,
    )?;
    same(
        &of("the preferences"),
        &old.preferences.of(users).await?,
        &new.preferences.of(users).await?,
    )?;
    let (old_timelines, new_timelines) = (old.timelines.read(users).await?, new.timelines.read(users).await?);
    for (user, (before, after)) in users.iter().zip(old_timelines.iter().zip(&new_timelines)) {
        // A rebuilt timeline has posts too that are planned and not delivered yet; the new store can be configured to
        // show fewer entries.
        let kept = &before.posts[before.posts.len().saturating_sub(after.posts.len())..];
        if kept.iter().any(|post| after.posts.binary_search(post).is_err()) {
            same(
                &format!("the timeline of user {user}"),
                &before.posts,
                &after.posts,
            )?;
        }
        // It was erased.
        if !before.complete {
            same(
                &format!("the erased timeline of user {user}"),
                &before.posts,
                &after.posts,
            )?;
        }
    }
    for user in users {
        compare_follows(old, new, *user).await?;
    }
    Ok(())
}

async fn compare_follows(old: &Stores, new: &Stores, user: UserKey) -> Result<()> {
    let count = old.follows.count(user).await?;
    same(
        &format!("the follower count of user {user}"),
        &count,
        &new.follows.count(user).await?,
    )?;
    let mut after = None;
    loop {
        let following = old.follows.following(user, after, PAGE).await?;
        same(
            &format!("whom user {user} follows"),
            &following,
            &new.follows.following(user, after, PAGE).await?,
        )?;
        match following.last() {
            Some(last) if following.len() == PAGE => after = Some(last.author),
            _ => break,
        }
    }
    // The current version, some before it, and those around the end of the retained history.
    let current = count.version.0;
    let mut versions = vec![current, current.saturating_sub(1), current / 2, 1, 0];
    versions.retain(|version| *version <= current);
    versions.dedup();
    for version in versions {
        compare_followers(old, new, user, version).await?;
    }
    Ok(())
}

async fn compare_followers(old: &Stores, new: &Stores, author: UserKey, version: u64) -> Result<()> {
    let what = format!("the followers of user {author} at version {version}");
    let at = Some(FollowVersion(version));
    let mut after = None;
    loop {
        let before = readable(old.follows.followers(author, at, after, PAGE).await)?;
        let page = readable(new.follows.followers(author, at, after, PAGE).await)?;
        same(&what, &before, &page)?;
        match before {
            Some(page) if !page.complete => after = page.last,
            _ => return Ok(()),
        }
    }
}

/// A page; `None` if its version is not retained any more.
fn readable(page: Result<FollowerPage>) -> Result<Option<FollowerPage>> {
    match page {
        Err(error) if error.kind() == ErrorKind::HistoryTrimmed => Ok(None),
        page => page.map(Some),
    }
}

async fn compare_posts(
    old: &Stores,
    new: &Stores,
    sample: Option<usize>,
    compared: &mut Compared,
) -> Result<()> {
    let last = old.posts.last().await?;
    same("the greatest id of a post", &last, &new.posts.last().await?)?;
    let mut planned_last = None;
    let mut after = None;
    loop {
        let planned = old.ledger.posts(after, PAGE).await?;
        same(
            "the posts of the ledger",
            &planned,
            &new.ledger.posts(after, PAGE).await?,
        )?;
        planned_last = planned.last().copied().or(planned_last);
        if planned.len() < PAGE {
            break;
        }
        after = planned.last().copied();
    }
    let last = last.max(planned_last).map_or(0, |post| post.0);
    let stride = stride(last, sample);
    let posts: Vec<PostId> = (1..=last)
        .step_by(usize::try_from(stride).unwrap_or(usize::MAX))
        .map(PostId)
        .collect();
    for posts in posts.chunks(PER_READ) {
        let (before, after) = (old.posts.get(posts).await?, new.posts.get(posts).await?);
        for (post, (before, after)) in posts.iter().zip(before.iter().zip(&after)) {
            same(&format!("post {post}"), before, after)?;
            compare_post(old, new, *post).await?;
            if let Some(found) = before {
                same(
                    &format!("the request of post {post}"),
                    &old.posts.find_by_request(found.author, &found.request_id).await?,
                    &new.posts.find_by_request(found.author, &found.request_id).await?,
                )?;
                same(
                    &format!("the posts of user {} up to {post}", found.author),
                    &old.posts.newest_by_author(found.author, *post, 20).await?,
                    &new.posts.newest_by_author(found.author, *post, 20).await?,
                )?;
                same(
                    &format!("the texts of user {} after {post}", found.author),
                    &old.posts.of_author(found.author, Some(*post), 20).await?,
                    &new.posts.of_author(found.author, Some(*post), 20).await?,
                )?;
            }
        }
        for stream in ["POSTS", "TIMELINE", "PUSH", "EVENTS"] {
            let sequences: Vec<u64> = posts.iter().map(|post| post.0).collect();
            same(
                &format!("the counted messages of {stream}"),
                &old.totals.seen(stream, &sequences).await?,
                &new.totals.seen(stream, &sequences).await?,
            )?;
        }
        compared.posts += posts.len() as u64;
    }
    Ok(())
}

async fn compare_post(old: &Stores, new: &Stores, post: PostId) -> Result<()> {
    let of = |what: &str| format!("{what} of post {post}");
    same(
        &of("the counts"),
        &old.totals.post_totals(post).await?,
        &new.totals.post_totals(post).await?,
    )?;
    let before = old.ledger.audit(post).await?;
    let after = new.ledger.audit(post).await?;
    let chunks: Vec<ChunkRef> = before
        .iter()
        .flat_map(|plan| &plan.chunks)
        .map(|chunk| ChunkRef {
            post,
            channel: chunk.channel,
            chunk: chunk.chunk,
        })
        .collect();
    same(
        &of("the plan"),
        &before,
        &without_unknown_versions(before.as_ref(), after),
    )?;
    same(
        &of("the deliveries"),
        &old.ledger.counts(post).await?,
        &new.ledger.counts(post).await?,
    )?;
    same(
        &of("the counted chunks"),
        &old.totals.counted(&chunks).await?,
        &new.totals.counted(&chunks).await?,
    )?;
    for channel in Channel::ALL {
        for state in [None, Some(DeliveryState::Pending), Some(DeliveryState::Dead)] {
            same(
                &of("the recipients"),
                &old.ledger.recipients(post, channel, state, None, PAGE).await?,
                &new.ledger.recipients(post, channel, state, None, PAGE).await?,
            )?;
        }
    }
    Ok(())
}

/// Plans of an older Herald have no version; the new store has 0 in its place.
fn without_unknown_versions(before: Option<&PostPlan>, mut after: Option<PostPlan>) -> Option<PostPlan> {
    if let (Some(before), Some(after)) = (before, &mut after) {
        for (before, after) in before.slices.iter().zip(&mut after.slices) {
            if before.version.is_none() && after.version == Some(FollowVersion(0)) {
                after.version = None;
            }
        }
    }
    after
}

async fn compare_dead_letters(
    old: &Stores,
    new: &Stores,
    sample: Option<usize>,
    compared: &mut Compared,
) -> Result<()> {
    for state in [
        DeadLetterState::Open,
        DeadLetterState::Redriving,
        DeadLetterState::Resolved,
        DeadLetterState::Discarded,
    ] {
        same(
            "the number of dead letters by state",
            &old.dead_letters.count(state).await?,
            &new.dead_letters.count(state).await?,
        )?;
    }
    let limit = |compared: u64| sample.is_some_and(|sample| compared >= sample as u64);
    let filter = DeadLetterFilter::default();
    let mut after = None;
    loop {
        let before = old
            .dead_letters
            .scan(&filter, Order::NewestFirst, after, PER_READ)
            .await?;
        let page = new
            .dead_letters
            .scan(&filter, Order::NewestFirst, after, PER_READ)
            .await?;
        same("the dead letters", &before.dead_letters, &page.dead_letters)?;
        compared.dead_letters += before.dead_letters.len() as u64;
        after = before.next;
        if after.is_none() || limit(compared.dead_letters) {
            break;
        }
    }
    let mut before = None;
    loop {
        let operations = old.dead_letters.operations(before, PER_READ).await?;
        same(
            "the operations on dead letters",
            &operations,
            &new.dead_letters.operations(before, PER_READ).await?,
        )?;
        compared.operations += operations.len() as u64;
        match operations.last() {
            Some(last) if operations.len() == PER_READ && !limit(compared.operations) => {
                before = Some(last.id);
            }
            _ => break,
        }
    }
    same(
        "the running operations on dead letters",
        &old.dead_letters.running().await?,
        &new.dead_letters.running().await?,
    )
}
