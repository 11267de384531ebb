//! Reading of timelines.

use herald_model::{PostId, UserKey};
use redis::{Cmd, Value};

use super::{
    View,
    field::{Field, State},
    merge::read_value,
    server::Server,
    whole,
};
use crate::{
    Result, TimelineEntries, TimelinePage,
    embedded::timelines::{block, pair},
};

/// Maximum number of users read in one pipeline.
const USERS_PER_PIPELINE: usize = 256;

/// The timeline of one user: the field of the body with the entries of the tail.
pub(super) async fn timeline(view: &View, server: &Server, user: UserKey) -> Result<Field> {
    let answers = server.pipeline(commands(view, user).into()).await?;
    merged(view, user, &mut answers.into_iter())
}

/// The tail first: a merge in between moves entries to the body, where they are then read again. The mark of a whole
/// shard last: a flush before it takes it away too.
fn commands(view: &View, user: UserKey) -> [(u16, Cmd); 3] {
    let keys = view.keys.bucket(pair::group(user));
    let mut tail = redis::cmd("LRANGE");
    tail.arg(&keys.tail).arg(0).arg(-1);
    let mut body = redis::cmd("HGET");
    body.arg(&keys.body).arg(pair::index(user));
    [
        (keys.slot, tail),
        (keys.slot, body),
        whole::command(view, keys.slot),
    ]
}

fn merged(view: &View, user: UserKey, answers: &mut impl Iterator<Item = Value>) -> Result<Field> {
    let blocks: Vec<Vec<u8>> = read_value(answers.next().unwrap_or_default())?;
    let field: Option<Vec<u8>> = read_value(answers.next().unwrap_or_default())?;
    let mut field = match field {
        Some(field) => Field::decode(&field)?,
        None => Field::empty(),
    };
    let whole = answers.next().unwrap_or_default();
    field.state = resolved(field.state, || whole::is_whole(view, view.slot(user), &whole))?;
    let mut posts = Vec::new();
    for block in &blocks {
        block::decode_user_posts(block, pair::index(user), &mut posts)?;
    }
    field.add(&mut posts, view.oldest(), view.config.entries_max);
    Ok(field)
}

/// The state of a timeline, given whether its shard is whole.
fn resolved(state: State, is_whole: impl FnOnce() -> Result<bool>) -> Result<State> {
    Ok(match state {
        State::Initial if is_whole()? => State::Complete,
        State::Initial => State::Partial,
        state => state,
    })
}

/// What a timeline needs before it can be called complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Nothing,
    /// The timeline must be rebuilt.
    Rebuild,
    /// The user was inactive: the timeline must be invalidated and the user recorded as active before the rebuild.
    Return,
}

/// Lists a page of a timeline. An incomplete timeline is rebuilt.
pub(super) async fn newest(
    view: &std::sync::Arc<View>,
    user: UserKey,
    before: Option<PostId>,
    limit: usize,
) -> Result<TimelinePage> {
    if view.is_erased(user) {
        return Ok(TimelinePage::default());
    }
    let returning = view.activity.note_read(user);
    let field = timeline(view, &view.reader, user).await?;
    let need = if returning {
        Need::Return
    } else if field.state == State::Complete && !view.monitor.is_suspect(view.slot(user)) {
        Need::Nothing
    } else {
        Need::Rebuild
    };
    if need == Need::Nothing {
        return Ok(page(&field, before, limit, false));
    }
    let rebuilt = view.rebuilder.rebuild(view, user, need).await;
    if view.is_erased(user) {
        return Ok(TimelinePage::default());
    }
    let field = if rebuilt {
        timeline(view, &view.reader, user).await?
    } else {
        field
    };
    // A timeline that was lost again in between is incomplete.
    let rebuilding = !rebuilt || field.state == State::Partial;
    Ok(page(&field, before, limit, rebuilding))
}

fn page(field: &Field, before: Option<PostId>, limit: usize, rebuilding: bool) -> TimelinePage {
    let start = before.map_or(0, |before| field.posts.partition_point(|post| *post >= before.0));
    let posts = field.posts[start..].iter().take(limit);
    TimelinePage {
        posts: posts.map(|post| PostId(*post)).collect(),
        rebuilding,
    }
}

/// Reads whole timelines, for audits. Users in a row who share a bucket share the read of its tail.
pub(super) async fn read(view: &View, users: &[UserKey]) -> Result<Vec<TimelineEntries>> {
    let mut all = Vec::with_capacity(users.len());
    for users in users.chunks(USERS_PER_PIPELINE) {
        let buckets = || users.chunk_by(|a, b| pair::group(*a) == pair::group(*b));
        let commands = buckets().flat_map(|users| bucket_commands(view, users)).collect();
        let mut answers = view.reader.pipeline(commands).await?.into_iter();
        // After the timelines: a flush in between takes the marks away too.
        let whole_ranges = whole::ranges(view).await?;
        for users in buckets() {
            let blocks: Vec<Vec<u8>> = read_value(answers.next().unwrap_or_default())?;
            let fields: Vec<Option<Vec<u8>>> = read_value(answers.next().unwrap_or_default())?;
            let mut pairs = Vec::new();
            for block in &blocks {
                block::decode_pairs(block, &mut pairs)?;
            }
            pairs.sort_unstable();
            let mut fields = fields.into_iter();
            for user in users {
                let mut field = match fields.next().flatten() {
                    Some(field) => Field::decode(&field)?,
                    None => Field::empty(),
                };
                let index = pair::index(*user);
                let start = pairs.partition_point(|p| pair::user_in_group(*p) < index);
                let posts = pairs[start..]
                    .iter()
                    .take_while(|p| pair::user_in_group(**p) == index);
                let mut posts = posts.map(|p| pair::post(*p)).collect();
                field.add(&mut posts, view.oldest(), view.config.entries_max);
                let slot = view.slot(*user);
                field.state = resolved(field.state, || {
                    Ok(whole_ranges.iter().any(|range| range.contains(slot)))
                })?;
                all.push(entries(view, *user, &field));
            }
        }
    }
    Ok(all)
}

/// As [`commands`], for several users of one bucket.
fn bucket_commands(view: &View, users: &[UserKey]) -> [(u16, Cmd); 2] {
    let keys = view.keys.bucket(pair::group(users[0]));
    let mut tail = redis::cmd("LRANGE");
    tail.arg(&keys.tail).arg(0).arg(-1);
    let mut body = redis::cmd("HMGET");
    body.arg(&keys.body);
    for user in users {
        body.arg(pair::index(*user));
    }
    [(keys.slot, tail), (keys.slot, body)]
}

fn entries(view: &View, user: UserKey, field: &Field) -> TimelineEntries {
    if view.is_erased(user) {
        return TimelineEntries::default();
    }
    TimelineEntries {
        posts: field.posts.iter().rev().map(|post| PostId(*post)).collect(),
        complete: field.state == State::Complete
            && !view.monitor.is_suspect(view.slot(user))
            && !view.activity.is_dormant(user),
    }
}
