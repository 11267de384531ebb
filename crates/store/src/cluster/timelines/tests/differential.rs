//! Random histories with losses: the timelines equal those of a model that loses nothing.

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;

const USERS: u32 = 90;
const AUTHORS: u32 = 5;
/// Users who follow more than `FOLLOWING_MAX` authors, and are never inactive.
const DROWNING: [u32; 2] = [40, 41];
const ENTRIES_MAX: usize = 7;
const FOLLOWING_MAX: u32 = 3;

/// Post, recipients, and those of them who are suppressed and dead.
type DeadChunk = (u64, Recipients, Vec<(SuppressedReason, Recipients)>, Recipients);

/// A process, the records, and what each user must see.
struct World {
    bed: Bed,
    process: ClusterTimelines,
    random: SmallRng,
    /// Posts by user, without bounds.
    model: BTreeMap<u32, BTreeSet<u64>>,
    oldest: u64,
    /// The next post.
    next: u64,
    /// Posts by author, oldest first.
    posts: BTreeMap<u32, Vec<u64>>,
    /// Chunks that are planned and not delivered yet.
    planned: Vec<(u64, Recipients)>,
    /// Chunks with dead recipients.
    dead: Vec<DeadChunk>,
    /// What has happened, for the message of a failure.
    log: Vec<String>,
}

impl World {
    async fn new(seed: u64) -> Option<Self> {
        let redis = Redis::start(RedisOptions {
            append_only: false,
            ..RedisOptions::default()
        });
        let bed = bed_with(required("the tests of timelines in Redis", redis.await)?).await?;
        let process = bed.open_with(World::config(&bed)).await;
        Some(Self {
            bed,
            process,
            random: SmallRng::seed_from_u64(seed),
            model: BTreeMap::new(),
            oldest: 0,
            next: 1,
            posts: BTreeMap::new(),
            planned: Vec::new(),
            dead: Vec::new(),
            log: Vec::new(),
        })
    }

    fn config(bed: &Bed) -> TimelinesConfig {
        TimelinesConfig {
            entries_max: ENTRIES_MAX,
            merge_blocks: 12,
            active_days: 30,
            following_max: FOLLOWING_MAX,
            ..config(&bed.redis.url())
        }
    }

    fn any(&mut self, max: u32) -> u32 {
        self.random.random_range(1..=max)
    }

    fn expected(&self, user: u32) -> Vec<u64> {
        let posts = self.model.get(&user).into_iter().flatten().rev().copied();
        posts
            .filter(|post| *post >= self.oldest)
            .take(ENTRIES_MAX)
            .collect()
    }

    async fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..25 => self.follow().await,
            25..55 => self.plan().await,
            55..85 => self.deliver_next().await,
            85..88 => self.redrive().await,
            88..92 => {
                let user = self.any(USERS);
                self.log.push(format!("read {user}"));
                self.check(user).await;
            }
            92..94 => self.sleep_long().await,
            94..95 => {
                // A rebuild of a post that is not delivered yet goes by the same number of authors as its delivery.
                self.deliver_all().await;
                self.log.push("count the drowning users".into());
                let state = &self.process.view.state;
                state.count_drowning(-1, 1_000, FOLLOWING_MAX).await.unwrap();
                self.process.view.sample().await.unwrap();
            }
            95..96 => {
                let oldest = self.next.saturating_sub(self.random.random_range(500..3_000));
                self.oldest = self.oldest.max(oldest);
                self.log.push(format!("oldest {}", self.oldest));
                self.process.raise_oldest_kept(PostId(self.oldest)).await.unwrap();
            }
            96..97 => {
                self.log.push("rebuild all".into());
                let users: Vec<_> = (1..=USERS).map(UserKey).collect();
                self.process.rebuild(&users).await.unwrap();
            }
            97..99 => {
                self.log.push("flush".into());
                self.bed.redis.flush().await.unwrap();
            }
            _ => self.set_back().await,
        }
    }

    /// Follows or unfollows; a follow brings the newest posts of the author.
    async fn follow(&mut self) {
        let user = self.any(USERS);
        let author = if DROWNING.contains(&user) {
            self.any(AUTHORS)
        } else {
            self.any(FOLLOWING_MAX)
        };
        let follows = self.random.random_range(0..3) > 0 || DROWNING.contains(&user);
        self.log.push(format!("{user} follows {author}: {follows}"));
        self.bed.follow(user, author, follows).await;
        if !follows || DROWNING.contains(&user) {
            return;
        }
        let posts = self.posts.get(&author).into_iter().flatten().rev().take(4);
        let posts: Vec<PostId> = posts.map(|post| PostId(*post)).collect();
        if posts.is_empty() {
            return;
        }
        let users = recipients([user]);
        self.bed.ledger.record_backfill(&posts, &users).await.unwrap();
        for post in posts {
            deliver(&self.process, post.0, &users).await;
            self.model.entry(user).or_default().insert(post.0);
        }
    }

    async fn plan(&mut self) {
        let (post, author) = (self.next, self.any(AUTHORS));
        self.next += self.random.random_range(1..300);
        let followers = self.bed.plan(post, author).await;
        self.posts.entry(author).or_default().push(post);
        self.log
            .push(format!("post {post} of {author} for {} users", followers.len()));
        if followers.is_empty() {
            return;
        }
        // Dead recipients get nothing, not even from a rebuild before the delivery.
        if self.random.random_range(0..6) == 0 {
            self.deliver(post, followers, true).await;
        } else {
            self.planned.push((post, followers));
        }
    }

    /// Delivers a planned chunk, in any order.
    async fn deliver_next(&mut self) {
        if !self.planned.is_empty() {
            let index = self.random.random_range(0..self.planned.len());
            let (post, chunk) = self.planned.swap_remove(index);
            self.deliver(post, chunk, false).await;
        }
    }

    async fn deliver_all(&mut self) {
        while !self.planned.is_empty() {
            self.deliver_next().await;
        }
    }

    /// Delivers a chunk, perhaps twice.
    async fn deliver(&mut self, post: u64, chunk: Recipients, is_faulty: bool) {
        let fails = |user: &UserKey| is_faulty && user.0.is_multiple_of(5);
        let dead = Recipients::from_sorted(chunk.iter().filter(fails));
        let sent = Recipients::from_sorted(chunk.iter().filter(|user| !fails(user)));
        self.log.push(format!(
            "deliver {post}, {} of {} are dead",
            dead.len(),
            chunk.len()
        ));
        let mut suppressed = Vec::new();
        for _ in 0..self.random.random_range(1..3) {
            let delivered = self.process.deliver(PostId(post), sent.clone()).await.unwrap();
            suppressed.clone_from(&delivered.suppressed);
            delivered.durable.await.unwrap();
        }
        self.note_delivered(post, &sent, &suppressed);
        if dead.is_empty() && suppressed.is_empty() {
            self.bed.settle(post, &chunk).await;
        } else {
            self.bed.settle_mixed(post, &chunk, &suppressed, &dead).await;
        }
        if !dead.is_empty() {
            self.dead.push((post, chunk, suppressed, dead));
        }
    }

    fn note_delivered(
        &mut self,
        post: u64,
        sent: &Recipients,
        suppressed: &[(SuppressedReason, Recipients)],
    ) {
        let drowned = suppressed
            .iter()
            .find(|(reason, _)| *reason == SuppressedReason::Drowning);
        for user in sent {
            // An inactive user gets the post when back.
            if !drowned.is_some_and(|(_, users)| users.contains(user)) {
                self.model.entry(user.0).or_default().insert(post);
            }
        }
    }

    async fn redrive(&mut self) {
        let Some((post, chunk, mut suppressed, dead)) = self.dead.pop() else {
            return;
        };
        self.log.push(format!("redrive {post}"));
        let delivered = self.process.deliver(PostId(post), dead.clone()).await.unwrap();
        delivered.durable.await.unwrap();
        self.note_delivered(post, &dead, &delivered.suppressed);
        for (reason, users) in delivered.suppressed {
            match suppressed.iter_mut().find(|(other, _)| *other == reason) {
                Some((_, others)) => {
                    let all: BTreeSet<UserKey> = others.iter().chain(users.iter()).collect();
                    *others = Recipients::from_sorted(all);
                }
                None => suppressed.push((reason, users)),
            }
        }
        suppressed.sort_by_key(|(reason, _)| *reason as u8);
        self.bed.settle_suppressed(post, &chunk, &suppressed).await;
    }

    /// Some users don't read for 40 days, and all processes start again.
    async fn sleep_long(&mut self) {
        // The drowning users are counted at start, as in `step`.
        self.deliver_all().await;
        let user = self.any(USERS);
        self.log.push(format!("15 users from {user} are inactive"));
        self.process.view.sample().await.unwrap();
        sqlx::query(
            "UPDATE herald.timelines_activity SET day = day - 40
            WHERE user_key BETWEEN $1 AND $1 + 14 AND user_key <> ALL($2)",
        )
        .bind(i64::from(user))
        .bind(DROWNING.map(i64::from))
        .execute(self.bed.postgres.pool())
        .await
        .unwrap();
        self.restart().await;
    }

    async fn restart(&mut self) {
        self.process.close().await;
        self.process = self.bed.open_with(World::config(&self.bed)).await;
    }

    /// Redis is set back to an earlier moment, with some of its deliveries lost.
    async fn set_back(&mut self) {
        self.log.push("save".into());
        self.bed.redis.command(&["SAVE"]).await.unwrap();
        let (dump, old) = ("dump.rdb", "old.rdb");
        std::fs::copy(self.bed.redis.dir().join(dump), self.bed.redis.dir().join(old)).unwrap();
        for _ in 0..self.random.random_range(0..15) {
            match self.random.random_range(0..4) {
                0 => self.follow().await,
                1 => self.plan().await,
                2 => {
                    let user = self.any(USERS);
                    self.check(user).await;
                }
                _ => self.deliver_next().await,
            }
        }
        self.log.push("set back".into());
        self.bed.redis.stop().await.unwrap();
        std::fs::copy(self.bed.redis.dir().join(old), self.bed.redis.dir().join(dump)).unwrap();
        self.bed.redis.restart().await.unwrap();
        self.bed.wait_for_repairs(&self.process).await;
    }

    async fn check(&self, user: u32) {
        let found = newest(&self.process, user).await;
        let expected = self.expected(user);
        assert!(
            shows(&found, &expected, &self.planned, user),
            "user {user} sees {found:?}, not {expected:?}, after\n{}",
            self.log.join("\n")
        );
    }

    /// A timeline that is called complete has all entries.
    async fn check_complete(&self) {
        let users: Vec<_> = (1..=USERS).map(UserKey).collect();
        let read = self.process.read(&users).await.unwrap();
        for (user, entries) in users.iter().zip(read) {
            if entries.complete {
                let found: Vec<u64> = entries.posts.iter().rev().map(|post| post.0).collect();
                let expected = self.expected(user.0);
                assert!(
                    shows(&found, &expected, &self.planned, user.0),
                    "the complete timeline of user {user} has {found:?}, not {expected:?}, after\n{}",
                    self.log.join("\n")
                );
            }
        }
    }
}

/// Whether a timeline has all that it must have, and besides only posts that are planned for the user and not delivered
/// yet: a rebuild delivers these early.
fn shows(found: &[u64], expected: &[u64], planned: &[(u64, Recipients)], user: u32) -> bool {
    let is_early = |post: &u64| {
        planned
            .iter()
            .any(|(other, chunk)| other == post && chunk.contains(UserKey(user)))
    };
    let early: Vec<u64> = found.iter().copied().filter(is_early).collect();
    let mut all: BTreeSet<u64> = expected.iter().copied().collect();
    all.extend(early);
    all.into_iter().rev().take(ENTRIES_MAX).eq(found.iter().copied())
}

async fn run(seed: u64) {
    let mut lengths = BTreeSet::new();
    let Some(mut world) = World::new(seed).await else {
        return;
    };
    for round in 0..3 {
        world.log.push(format!("round {round} of seed {seed}"));
        for _ in 0..60 {
            world.step().await;
        }
        world.deliver_all().await;
        for flush in [false, true] {
            if flush {
                world.log.push("flush".into());
                world.bed.redis.flush().await.unwrap();
            }
            world.bed.wait_for_repairs(&world.process).await;
            world.check_complete().await;
            for user in 1..=USERS {
                world.check(user).await;
                lengths.insert(world.expected(user).len());
            }
            world.check_complete().await;
        }
    }
    assert!(lengths.contains(&ENTRIES_MAX) && lengths.len() > 3, "{lengths:?}");
}

#[tokio::test]
async fn rebuilt_timelines_equal_those_that_were_never_lost() {
    for seed in 1..=2 {
        run(seed).await;
    }
}
