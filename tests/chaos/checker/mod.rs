//! The checker: waits until the mesh has drained, reads all state, and compares it with the journal of client answers.

mod audit;
pub(crate) mod dead_letters;
mod deletions;
mod drain;
mod expect;
mod invariants;
mod observe;
mod pushes;
mod replicas;
mod self_test;
mod watches;

use self::drain::Remaining;
use crate::{
    workload::{Journal, Watchers},
    world::World,
};

/// Maximum printed violations of one kind.
const PRINTED_MAX: usize = 8;

/// Result of a check.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Violations by kind.
    kinds: Vec<(&'static str, Vec<String>)>,
    pub(crate) posts: usize,
    pub(crate) deleted_posts: usize,
    /// Entries that watchers received.
    pub(crate) watched_entries: usize,
    /// Reconnects of watchers with a resume token.
    pub(crate) resumes: usize,
    pub(crate) timeline_deliveries: u64,
    pub(crate) pushes: u64,
    pub(crate) duplicate_pushes: u64,
    pub(crate) dead_letters: usize,
}

impl Verdict {
    pub(crate) fn is_good(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Whether a violation of this kind was found.
    pub(crate) fn has(&self, kind: &str) -> bool {
        self.kinds.iter().any(|(found, _)| *found == kind)
    }

    fn add(&mut self, kind: &'static str, found: Vec<String>) {
        if !found.is_empty() {
            self.kinds.push((kind, found));
        }
    }

    /// Report lines for the log.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "checked {} posts ({} deleted), {} timeline deliveries, {} pushes ({} repeated), {} watched entries ({} \
             resumed watches), {} dead letters",
            self.posts,
            self.deleted_posts,
            self.timeline_deliveries,
            self.pushes,
            self.duplicate_pushes,
            self.watched_entries,
            self.resumes,
            self.dead_letters
        )];
        for (kind, found) in &self.kinds {
            lines.push(format!("VIOLATION, {kind}: {}", found.len()));
            lines.extend(found.iter().take(PRINTED_MAX).map(|what| format!("  {what}")));
        }
        lines
    }
}

/// Checks a mesh after the load and the faults have ended.
pub(crate) async fn check(world: &World, journal: &Journal, watchers: &Watchers) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.add("unexpected exits", world.herald.unexpected_exits());
    let drained = drain::wait(world, journal).await;
    let redriven = dead_letters::redrive(world, journal).await;
    verdict.add("not redriven", redriven.left);
    // A post whose fan-out is a dead letter settles after the redrive only; whether a fault explains the dead letter is
    // checked below. The redriven messages must settle too.
    let drained = match drained {
        Remaining::Posts(_) | Remaining::Nothing if redriven.sent > 0 => drain::wait(world, journal).await,
        drained => drained,
    };
    verdict.add("not settled", drained.into_lines());
    let observed = match observe::read_all(world, journal).await {
        Ok(observed) => observed,
        Err(status) => {
            verdict.add("not readable", vec![format!("{status:?}")]);
            verdict.add("violations during the load", journal.violations());
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
    verdict.deleted_posts = observed.posts.values().filter(|seen| seen.deleted).count();
    verdict.add(
        "requests",
        invariants::requests(&posts, &observed, journal.poison_in_posts()),
    );
    verdict.add("fan-out", invariants::fanout(&posts, &observed, &expected));
    verdict.add("timelines", invariants::timelines(&posts, &observed, &expected));
    verdict.add("backfills", invariants::backfills(&posts, &observed, &expected));
    verdict.add("conservation", invariants::conservation(&posts, &observed));
    verdict.add("totals", invariants::totals(&posts, &observed));
    verdict.add("deletions", deletions::posts(&posts, &observed, &deletions));
    verdict.add("deletion counts", deletions::counts(&observed));
    let late = deletions::pushes(&observed, &deletions, &world.log.faults());
    verdict.add("pushes of deleted posts", late);
    let watched = watches::wait(watchers, facts).await;
    verdict.watched_entries = watched.iter().map(|watched| watched.entries.len()).sum();
    verdict.resumes = watched.iter().map(|watched| watched.resumes.len()).sum();
    verdict.add("watches", watches::check(&watched, facts));
    verdict.add(
        "silent watches",
        watches::check_silences(&watched, &world.log.faults()),
    );
    verdict.add("checker self-test", self_test::undetected(&watched, facts));
    verdict.add("audit", audit::findings(world).await);
    verdict.add("replicas", replicas::find_differences(world).await);
    match dead_letters::check(world, journal).await {
        Ok((violations, count)) => {
            verdict.dead_letters = count;
            verdict.add("dead letters", violations);
        }
        Err(status) => verdict.add("dead letters", vec![format!("{status:?}")]),
    }
    let pushes = pushes::check(&posts, &observed, world, journal);
    (verdict.pushes, verdict.duplicate_pushes) = (pushes.received, pushes.repeated);
    verdict.add("pushes", pushes.violations);
    verdict.timeline_deliveries = observed
        .timelines
        .iter()
        .map(|entries| entries.len() as u64)
        .sum();
    // Watchers may report violations until now.
    verdict.add("violations during the load", journal.violations());
    verdict
}
