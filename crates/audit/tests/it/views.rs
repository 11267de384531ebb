//! Timelines that are a view of the ledger: incomplete, lost and rebuilt ones.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use herald_audit::{FindingKind, Repaired, Scope};
use herald_model::{Channel, PostId, Recipients, UserKey, time::Timestamp};
use herald_store::{
    Archived, Delivered, Error, ErrorKind, Outcome, OutcomeDetails, Rebuilt, Result, TimelineEntries,
    TimelinePage, Timelines,
};

use crate::{
    findings::{kinds, none},
    harness::{World, user},
};

/// Timelines that have lost the entries of some users.
struct Views {
    inner: Arc<dyn Timelines>,
    /// Users whose timelines are known to be incomplete.
    incomplete: Mutex<BTreeSet<UserKey>>,
    /// Users whose timelines are empty and seem to be complete.
    lost: Mutex<BTreeSet<UserKey>>,
    /// Users whose timelines can't be read.
    damaged: Mutex<BTreeSet<UserKey>>,
    /// Calls of `rebuild`.
    rebuilt: Mutex<Vec<UserKey>>,
}

#[async_trait]
impl Timelines for Views {
    async fn deliver(&self, post: PostId, recipients: Recipients) -> Result<Delivered> {
        self.inner.deliver(post, recipients).await
    }

    async fn is_intact(&self, losses: u64) -> Result<bool> {
        self.inner.is_intact(losses).await
    }

    async fn newest(&self, _: UserKey, _: Option<PostId>, _: usize) -> Result<TimelinePage> {
        panic!("an audit is no read by the user")
    }

    async fn read(&self, users: &[UserKey]) -> Result<Vec<TimelineEntries>> {
        if users
            .iter()
            .any(|user| self.damaged.lock().unwrap().contains(user))
        {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "a block of the timelines is damaged",
            ));
        }
        let mut read = self.inner.read(users).await?;
        for (user, timeline) in users.iter().zip(&mut read) {
            if self.incomplete.lock().unwrap().contains(user) {
                *timeline = TimelineEntries::default();
            }
            if self.lost.lock().unwrap().contains(user) {
                timeline.posts.clear();
            }
        }
        Ok(read)
    }

    async fn rebuild(&self, users: &[UserKey]) -> Result<Rebuilt> {
        self.rebuilt.lock().unwrap().extend(users);
        self.damaged.lock().unwrap().retain(|user| !users.contains(user));
        let (mut lost, mut incomplete) = (self.lost.lock().unwrap(), self.incomplete.lock().unwrap());
        let timelines = users
            .iter()
            .filter(|user| lost.remove(user) | incomplete.remove(user));
        Ok(Rebuilt {
            timelines: timelines.count() as u64,
            entries: 1,
        })
    }

    async fn erase(&self, user: UserKey) -> Result<u64> {
        self.inner.erase(user).await
    }
}

/// A world whose timelines have lost the entries of users that a test chooses.
async fn start() -> (World, Arc<Views>) {
    let mut world = World::start().await;
    let views = Arc::new(Views {
        inner: world.stores.timelines.clone(),
        incomplete: Mutex::default(),
        lost: Mutex::default(),
        damaged: Mutex::default(),
        rebuilt: Mutex::default(),
    });
    world.auditor.timelines = views.clone();
    (world, views)
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_timelines_are_counted_and_not_compared() {
    let (world, views) = start().await;
    for _ in 0..3 {
        world.delivered_post(&[1, 2, 3]).await;
    }
    world.drain().await;
    let second = world.intern_users(&[2]).await;
    views.incomplete.lock().unwrap().extend(second.iter());
    let (summary, findings) = world.audit(Scope::All, true).await;
    assert_eq!(findings, []);
    assert_eq!((summary.incomplete_timelines, summary.timeline_entries), (1, 6));
    assert_eq!(*views.rebuilt.lock().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn timelines_that_cannot_be_read_are_reported_and_the_others_are_compared() {
    let (world, views) = start().await;
    for _ in 0..3 {
        world.delivered_post(&[1, 2, 3, 4, 5]).await;
    }
    world.drain().await;
    let damaged: Vec<UserKey> = world.intern_users(&[2, 3, 5]).await.iter().collect();
    let lost: Vec<UserKey> = world.intern_users(&[4]).await.iter().collect();
    views.damaged.lock().unwrap().extend(&damaged);
    views.lost.lock().unwrap().extend(&lost);
    let (summary, findings) = world.audit(Scope::All, false).await;
    let mut expected = vec![FindingKind::Inconsistent; 2];
    expected.extend([FindingKind::Missing; 3]);
    assert_eq!(kinds(&findings), expected);
    assert_eq!(findings[0].user, Some(user(2)));
    assert!(
        findings[0].detail.contains("1 others can't be read: a block"),
        "{findings:?}"
    );
    assert!(
        findings[1].detail.starts_with("the timeline can't be read"),
        "{findings:?}"
    );
    assert_eq!(summary.timeline_entries, 6);

    let (summary, findings) = world.audit(Scope::All, true).await;
    assert_eq!(kinds(&findings), expected);
    assert_eq!(summary.repaired, 5, "{findings:?}");
    let (_, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_timeline_is_reported_and_a_repair_rebuilds_it_once() {
    let (world, views) = start().await;
    for _ in 0..3 {
        world.delivered_post(&[1, 2, 3]).await;
    }
    world.drain().await;
    let third: Vec<UserKey> = world.intern_users(&[3]).await.iter().collect();
    views.lost.lock().unwrap().extend(&third);
    let (summary, findings) = world.audit(Scope::All, false).await;
    assert_eq!(kinds(&findings), [FindingKind::Missing; 3]);
    assert!(
        findings
            .iter()
            .all(|finding| finding.user == Some(user(3)) && finding.repaired == Repaired::NotRequested)
    );
    assert_eq!((summary.incomplete_timelines, summary.repaired), (0, 0));
    assert_eq!(*views.rebuilt.lock().unwrap(), []);

    let (summary, findings) = world.audit(Scope::All, true).await;
    assert_eq!(kinds(&findings), [FindingKind::Missing; 3]);
    assert_eq!(summary.repaired, 3, "{findings:?}");
    assert_eq!(*views.rebuilt.lock().unwrap(), third);
    assert_eq!(world.mesh.last_sequence("REDRIVE").await.unwrap(), 0);
    let (_, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn suppressed_recipients_are_neither_missing_nor_extra() {
    let (world, _views) = start().await;
    let post = world.accept().await;
    let planned = world.intern_users(&[1, 2, 3]).await;
    world.archive(&post).await;
    world.plan(post.id, &[(Channel::Timeline, &planned)]).await;
    let first = world.intern_users(&[1]).await;
    world.put_on_timelines(post.id, &first).await;
    // An inactive recipient and one who follows too many authors.
    let outcome = Outcome::Mixed {
        delivered: first,
        suppressed: world.intern_users(&[2, 3]).await,
        expired: none(),
        dead: none(),
        details: OutcomeDetails::default(),
    };
    world.settle(post.id, Channel::Timeline, &planned, outcome).await;
    world.add_totals(post.id, 1, 0).await;
    world.drain().await;
    let (summary, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
    assert_eq!((summary.timeline.delivered, summary.timeline.suppressed), (1, 2));
    // The inactive recipient has read the timeline, which was rebuilt.
    world
        .put_on_timelines(post.id, &world.intern_users(&[2]).await)
        .await;
    let (_, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_post_is_not_expected_on_timelines() {
    let (world, views) = start().await;
    let (post, _) = world.delivered_post(&[1]).await;
    let (kept, _) = world.delivered_post(&[1]).await;
    let deletion = Archived::Deleted {
        post: post.id,
        at: post.accepted_at,
    };
    world.stores.posts.archive(&[deletion]).await.unwrap();
    world.drain().await;
    let first = world.intern_users(&[1]).await;
    views.lost.lock().unwrap().extend(first.iter());
    let (_, findings) = world.audit(Scope::All, false).await;
    let found: Vec<_> = findings
        .iter()
        .map(|finding| (finding.kind, finding.post))
        .collect();
    assert_eq!(found, [(FindingKind::Missing, Some(kept.id))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timeline_of_an_erased_user_is_no_incomplete_one() {
    let world = World::start().await;
    let (_, recipients) = world.delivered_post(&[1, 2]).await;
    world.drain().await;
    let erased = recipients.iter().next().unwrap();
    let ids = world.stores.users.ids(&[erased]).await.unwrap();
    let begun = world
        .stores
        .erasures
        .begin(ids[0].as_ref().unwrap(), "an operator", Timestamp::now())
        .await
        .unwrap();
    assert!(begun.is_some());
    world.stores.timelines.erase(erased).await.unwrap();
    let (summary, findings) = world.audit(Scope::All, false).await;
    assert_eq!(findings, []);
    assert_eq!((summary.incomplete_timelines, summary.timeline_entries), (0, 1));
}
