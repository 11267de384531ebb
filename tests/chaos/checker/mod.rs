//! The checker: knows each accepted post and each answered follow, waits for quiet, reads everything, and says what is wrong.

mod audit;
mod blind;
pub(crate) mod dead_letters;
mod deletions;
mod expect;
mod judge;
mod observe;
mod pushes;
mod quiet;
mod replicas;
mod watches;

use crate::{
    workload::{Journal, Watchers},
    world::World,
};

/// No more of one kind are printed.
const SHOWN_MAX: usize = 8;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// What is wrong, by kind.
    kinds: Vec<(&'static str, Vec<String>)>,
    pub(crate) posts: usize,
    pub(crate) deleted_posts: usize,
    /// Posts that were shown to watchers, and how often these came back.
    pub(crate) shown: usize,
    pub(crate) returns: usize,
    pub(crate) timeline_deliveries: u64,
    pub(crate) pushes: u64,
    pub(crate) duplicate_pushes: u64,
    pub(crate) dead_letters: usize,
}

impl Verdict {
    pub(crate) fn is_good(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Whether something of this kind was found.
    pub(crate) fn has(&self, kind: &str) -> bool {
        self.kinds.iter().any(|(found, _)| *found == kind)
    }

    fn add(&mut self, kind: &'static str, found: Vec<String>) {
        if !found.is_empty() {
            self.kinds.push((kind, found));
        }
    }

    /// For people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "checked {} posts ({} of them deleted), {} timeline deliveries, {} pushes ({} of them repeated), {} entries that \
             were watched ({} returns), {} dead letters",
            self.posts,
            self.deleted_posts,
            self.timeline_deliveries,
            self.pushes,
            self.duplicate_pushes,
            self.shown,
            self.returns,
            self.dead_letters
        )];
        for (kind, found) in &self.kinds {
            lines.push(format!("WRONG, {kind}: {}", found.len()));
            lines.extend(found.iter().take(SHOWN_MAX).map(|what| format!("  {what}")));
        }
        lines
    }
}

/// Checks a mesh on which nothing acts any more.
pub(crate) async fn check(world: &World, journal: &Journal, watchers: &Watchers) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.add("processes", world.herald.surprises());
    verdict.add("not settled", quiet::wait(world, journal).await);
    verdict.add("not redriven", dead_letters::redrive(world, journal).await);
    // What was redriven settles too.
    verdict.add("not settled after the redrive", quiet::wait(world, journal).await);
    let observed = match observe::everything(world, journal).await {
        Ok(observed) => observed,
        Err(status) => {
            verdict.add("not readable", vec![format!("{status:?}")]);
            verdict.add("seen during the load", journal.all_wrong());
            return verdict;
        }
    };
    let posts = journal.posts();
    let deletions = journal.deletions();
    let expected = expect::Expected::new(&posts, &journal.changes(), &deletions);
    let facts = watches::Facts {
        posts: &posts,
        observed: &observed,
        expected: &expected,
        deletions: &deletions,
    };
    verdict.posts = posts.len();
    verdict.deleted_posts = observed.posts.values().filter(|seen| seen.gone).count();
    verdict.add(
        "requests",
        judge::requests(&posts, &observed, journal.foreign_count()),
    );
    verdict.add("fan-out", judge::fanout(&posts, &observed, &expected));
    verdict.add("timelines", judge::timelines(&posts, &observed, &expected));
    verdict.add("backfills", judge::backfills(&posts, &observed, &expected));
    verdict.add("conservation", judge::conservation(&posts, &observed));
    verdict.add("totals", judge::totals(&posts, &observed));
    verdict.add("deletions", deletions::posts(&posts, &observed, &deletions));
    verdict.add("deletions counted", deletions::counts(&observed));
    let late = deletions::pushes(&observed, &deletions, &world.log.faults());
    verdict.add("pushes of deleted posts", late);
    let watched = watches::wait(watchers, facts).await;
    verdict.shown = watched.iter().map(|watched| watched.entries.len()).sum();
    verdict.returns = watched.iter().map(|watched| watched.returns.len()).sum();
    verdict.add("watches", watches::judge(&watched, facts));
    verdict.add("silent watches", watches::silences(&watched, &world.log.faults()));
    verdict.add("a blind spot of the checker", blind::spots(&watched, facts));
    verdict.add("audit", audit::findings(world).await);
    verdict.add("replicas", replicas::disagreements(world).await);
    match dead_letters::judge(world, journal).await {
        Ok((wrong, count)) => {
            verdict.dead_letters = count;
            verdict.add("dead letters", wrong);
        }
        Err(status) => verdict.add("dead letters", vec![format!("{status:?}")]),
    }
    let pushes = pushes::judge(&posts, &observed, world, journal);
    (verdict.pushes, verdict.duplicate_pushes) = (pushes.received, pushes.repeated);
    verdict.add("pushes", pushes.wrong);
    verdict.timeline_deliveries = observed
        .timelines
        .iter()
        .map(|entries| entries.len() as u64)
        .sum();
    // Watchers can have seen something until now.
    verdict.add("seen during the load", journal.all_wrong());
    verdict
}
