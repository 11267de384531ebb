//! Writing of whole timelines that come from an embedded store.

use futures::{StreamExt, TryStreamExt, stream};
use herald_model::{PostId, UserKey};

use super::{
    ClusterTimelines, View,
    field::{Field, State},
    merge::{read_value, write},
    whole,
};
use crate::{Error, ErrorKind, Result, embedded::timelines::pair};

/// Maximum number of buckets that are written at a time.
const BUCKETS_IN_FLIGHT_MAX: usize = 16;

/// Maximum number of attempts at a bucket that something else writes to, such as a merge.
const ATTEMPTS_MAX: u32 = 20;

impl ClusterTimelines {
    /// Writes the timelines of users, who ascend, as complete ones. Posts ascend.
    pub(crate) async fn import(&self, timelines: &[(UserKey, Vec<PostId>)]) -> Result<()> {
        let buckets = timelines.chunk_by(|(a, _), (b, _)| pair::group(*a) == pair::group(*b));
        stream::iter(buckets.map(|bucket| import_bucket(&self.view, bucket)))
            .buffer_unordered(BUCKETS_IN_FLIGHT_MAX)
            .try_collect()
            .await
    }

    /// Ends an import of all timelines: those without posts are complete too.
    pub(crate) async fn end_import(&self) -> Result<()> {
        for range in self.view.writer.refresh_ranges().await?.iter() {
            whole::mark(&self.view, *range).await?;
        }
        Ok(())
    }

    /// The posts, of ascending ones, that a timeline shows.
    pub(crate) fn shown(&self, posts: &[PostId]) -> Vec<PostId> {
        let shown = &posts[posts.partition_point(|post| post.0 < self.view.oldest())..];
        shown[shown.len().saturating_sub(self.view.config.entries_max)..].to_vec()
    }
}

async fn import_bucket(view: &View, timelines: &[(UserKey, Vec<PostId>)]) -> Result<()> {
    let Some((first, _)) = timelines.first() else {
        return Ok(());
    };
    let bucket = pair::group(*first);
    let keys = view.keys.bucket(bucket);
    let fields: Vec<(u8, Field)> = timelines
        .iter()
        .map(|(user, posts)| {
            let mut field = Field {
                state: State::Complete,
                posts: Vec::new(),
            };
            let mut posts = posts.iter().map(|post| post.0).collect();
            field.add(&mut posts, view.oldest(), view.config.entries_max);
            (pair::index(*user), field)
        })
        .collect();
    for _ in 0..ATTEMPTS_MAX {
        let mut generation = redis::cmd("HGET");
        generation.arg(&keys.body).arg("g");
        let generation: Option<Vec<u8>> = read_value(view.writer.run(keys.slot, generation).await?)?;
        if write(view, bucket, &generation.unwrap_or_default(), &[], &fields).await? {
            return Ok(());
        }
    }
    Err(Error::new(
        ErrorKind::Unavailable,
        "can't write timelines: another process writes to them all the time",
    ))
}
