//! Stores of an engine that is not open yet. Until it is, each call fails with
//! [`Unavailable`](crate::ErrorKind::Unavailable).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use herald_model::{
    Address, ApiKey, ApiKeyId, Channel, ChunkId, DeliveryState, Device, DeviceId, Disabled, FailingStreak,
    FollowVersion, Post, PostId, Recipients, Registration, UserId, UserKey, time::Timestamp,
};
use parking_lot::Mutex;

use crate::observed::Observed;
use crate::{
    ApiKeys, Archived, ChunkRef, ClockCheck, Counted, Counts, DeadLetter, DeadLetterFilter, DeadLetterGroups,
    DeadLetterId, DeadLetterPage, DeadLetterState, DeadLetterVersion, DeadLetters, DeadMessage, Delivered,
    Devices, ErasedCounts, Erasure, ErasureId, Erasures, Error, ErrorKind, Fence, FollowChange, FollowEffect,
    FollowerCount, FollowerPage, Following, Follows, Forgotten, Health, Inserted, IntendedFile, Leases,
    Ledger, MarkedDead, NewOperation, Operation, OperationId, OperationState, Order, PostCounts, PostPlan,
    PostTotals, Posts, Preferences, PreferencesChange, Rebuilt, RecipientStatus, RecordedOutcome, Reopened,
    Reopening, Result, Retention, Settlement, SlicePlan, Step, Stores, StreamMark, StreamMarks,
    TimelineEntries, TimelinePage, Timelines, Totals, TotalsBatch, Users, users_cache::KeyUse,
};

/// Why an engine is not open yet. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Reason(Arc<Mutex<String>>);

/// A store that comes later. Clones share it.
pub(crate) struct Later<T: ?Sized> {
    store: Arc<OnceLock<Arc<T>>>,
    reason: Reason,
}

impl Reason {
    pub(crate) fn set(&self, error: &Error) {
        *self.0.lock() = error.to_string();
    }

    /// The error of a call.
    pub(crate) fn error(&self) -> Error {
        let message = format!("the store is not open yet: {}", self.0.lock());
        Error::new(ErrorKind::Unavailable, message)
    }
}

impl<T: ?Sized> Later<T> {
    pub(crate) fn new(reason: &Reason) -> Self {
        Self {
            store: Arc::default(),
            reason: reason.clone(),
        }
    }

    /// The store is there; later calls go to it.
    pub(crate) fn set(&self, store: Arc<T>) {
        // A second store would be a second engine; the first one stays.
        let _ = self.store.set(store);
    }

    fn get(&self) -> Result<&T> {
        self.store
            .get()
            .map(|store| &**store)
            .ok_or_else(|| self.reason.error())
    }
}

impl<T: ?Sized> Clone for Later<T> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            reason: self.reason.clone(),
        }
    }
}

/// All stores of an engine that is not open yet.
#[derive(Clone)]
pub(crate) struct LaterStores {
    users: Later<dyn Users>,
    follows: Later<dyn Follows>,
    posts: Later<dyn Posts>,
    devices: Later<dyn Devices>,
    preferences: Later<dyn Preferences>,
    pub(crate) timelines: Later<dyn Timelines>,
    ledger: Later<dyn Ledger>,
    totals: Later<dyn Totals>,
    dead_letters: Later<dyn DeadLetters>,
    erasures: Later<dyn Erasures>,
    leases: Later<dyn Leases>,
    api_keys: Later<dyn ApiKeys>,
    stream_marks: Later<dyn StreamMarks>,
    pub(crate) retention: Later<dyn Retention>,
}

impl LaterStores {
    pub(crate) fn new(reason: &Reason) -> Self {
        Self {
            users: Later::new(reason),
            follows: Later::new(reason),
            posts: Later::new(reason),
            devices: Later::new(reason),
            preferences: Later::new(reason),
            timelines: Later::new(reason),
            ledger: Later::new(reason),
            totals: Later::new(reason),
            dead_letters: Later::new(reason),
            erasures: Later::new(reason),
            leases: Later::new(reason),
            api_keys: Later::new(reason),
            stream_marks: Later::new(reason),
            retention: Later::new(reason),
        }
    }

    /// All but timelines and retention are there.
    pub(crate) fn set_records(&self, stores: &RecordStores) {
        self.users.set(stores.users.clone());
        self.follows.set(stores.follows.clone());
        self.posts.set(stores.posts.clone());
        self.devices.set(stores.devices.clone());
        self.preferences.set(stores.preferences.clone());
        self.ledger.set(stores.ledger.clone());
        self.totals.set(stores.totals.clone());
        self.dead_letters.set(stores.dead_letters.clone());
        self.erasures.set(stores.erasures.clone());
        self.leases.set(stores.leases.clone());
        self.api_keys.set(stores.api_keys.clone());
        self.stream_marks.set(stores.stream_marks.clone());
    }

    /// These stores as those of an engine.
    pub(crate) fn stores(&self, health: Arc<dyn Health>) -> Stores {
        Stores {
            users: Arc::new(self.users.clone()),
            follows: Arc::new(self.follows.clone()),
            posts: Arc::new(self.posts.clone()),
            devices: Arc::new(self.devices.clone()),
            preferences: Arc::new(self.preferences.clone()),
            timelines: Arc::new(self.timelines.clone()),
            ledger: Arc::new(self.ledger.clone()),
            totals: Arc::new(self.totals.clone()),
            dead_letters: Arc::new(self.dead_letters.clone()),
            erasures: Arc::new(self.erasures.clone()),
            leases: Arc::new(self.leases.clone()),
            api_keys: Arc::new(self.api_keys.clone()),
            stream_marks: Arc::new(self.stream_marks.clone()),
            retention: Arc::new(self.retention.clone()),
            health,
        }
    }
}

/// The stores that need no timelines.
pub(crate) struct RecordStores {
    pub(crate) users: Arc<dyn Users>,
    pub(crate) follows: Arc<dyn Follows>,
    pub(crate) posts: Arc<dyn Posts>,
    pub(crate) devices: Arc<dyn Devices>,
    pub(crate) preferences: Arc<dyn Preferences>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) totals: Arc<dyn Totals>,
    pub(crate) dead_letters: Arc<dyn DeadLetters>,
    pub(crate) erasures: Arc<dyn Erasures>,
    pub(crate) leases: Arc<dyn Leases>,
    pub(crate) api_keys: Arc<dyn ApiKeys>,
    pub(crate) stream_marks: Arc<dyn StreamMarks>,
}

impl RecordStores {
    /// These stores and the others of an engine.
    pub(crate) fn with(
        self,
        timelines: Arc<dyn Timelines>,
        retention: Arc<dyn Retention>,
        health: Arc<dyn Health>,
    ) -> Stores {
        Stores {
            users: self.users,
            follows: self.follows,
            posts: self.posts,
            devices: self.devices,
            preferences: self.preferences,
            timelines,
            ledger: self.ledger,
            totals: self.totals,
            dead_letters: self.dead_letters,
            erasures: self.erasures,
            leases: self.leases,
            api_keys: self.api_keys,
            stream_marks: self.stream_marks,
            retention,
            health,
        }
    }
}

/// Implements a trait for a store that comes later: each call goes to it. With a name, the trait is implemented for a store
/// whose calls are observed, too; the name begins that of each operation. A method that reads no store has a value for
/// the time before it is open.
macro_rules! later {
    ($trait:ident $name:literal $($methods:tt)*) => {
        later!($trait $($methods)*);
        later!(@observed $trait $name $($methods)*);
    };
    (
        $trait:ident
        { $($method:ident($($argument:ident: $type:ty),*) -> $result:ty;)* }
        $({ $($cached:ident($($key:ident: $of:ty),*) -> $value:ty = $before:expr;)* })?
    ) => {
        #[async_trait]
        impl $trait for Later<dyn $trait> {
            $(async fn $method(&self, $($argument: $type),*) -> Result<$result> {
                self.get()?.$method($($argument),*).await
            })*
            $($(fn $cached(&self, $($key: $of),*) -> $value {
                self.get().map_or($before, |store| store.$cached($($key),*))
            })*)?
        }
    };
    (
        @observed $trait:ident $name:literal
        { $($method:ident($($argument:ident: $type:ty),*) -> $result:ty;)* }
        $({ $($cached:ident($($key:ident: $of:ty),*) -> $value:ty = $before:expr;)* })?
    ) => {
        #[async_trait]
        impl $trait for Observed<dyn $trait> {
            $(async fn $method(&self, $($argument: $type),*) -> Result<$result> {
                let call = self.store.$method($($argument),*);
                self.metrics.observe(concat!($name, "_", stringify!($method)), call).await
            })*
            $($(fn $cached(&self, $($key: $of),*) -> $value {
                self.store.$cached($($key),*)
            })*)?
        }
    };
}

later!(Users "users" {
    find(ids: &[UserId]) -> Vec<Option<UserKey>>;
    intern(ids: &[UserId]) -> Vec<UserKey>;
    ids(keys: &[UserKey]) -> Vec<Option<UserId>>;
    last_key() -> Option<UserKey>;
} {
    cached_key(id: &UserId) -> Option<UserKey> = None;
    use_keys() -> KeyUse = KeyUse::default();
});

later!(Follows "follows" {
    apply(changes: &[FollowChange]) -> Vec<FollowEffect>;
    count(author: UserKey) -> FollowerCount;
    followers(author: UserKey, at: Option<FollowVersion>, after: Option<UserKey>, limit: usize) -> FollowerPage;
    following(follower: UserKey, after: Option<UserKey>, limit: usize) -> Vec<Following>;
    erase(user: UserKey) -> u64;
});

later!(Posts "posts" {
    archive(entries: &[Archived]) -> ();
    get(posts: &[PostId]) -> Vec<Option<Post>>;
    newest_by_author(author: UserKey, up_to: PostId, limit: usize) -> Vec<PostId>;
    find_by_request(author: UserKey, request_id: &str) -> Option<PostId>;
    capacity() -> ();
    last() -> Option<PostId>;
    first_since(moment: Timestamp) -> PostId;
    list(after: Option<PostId>, limit: usize) -> Vec<PostId>;
    of_author(author: UserKey, after: Option<PostId>, limit: usize) -> Vec<PostId>;
    erase_texts(posts: &[PostId]) -> u64;
    erase_damaged(author: UserKey, posts: &[PostId], at: Timestamp) -> Vec<PostId>;
});

later!(Devices {
    register(user: UserKey, address: Address, now: Timestamp) -> Device;
    register_webhook(user: UserKey, url: String, new_secret: Vec<u8>, now: Timestamp) -> Device;
    rotate_secret(user: UserKey, device: DeviceId, secret: Vec<u8>, previous_expires_at: Timestamp) -> Option<Device>;
    enable(user: UserKey, device: DeviceId) -> Option<Device>;
    unregister(user: UserKey, device: DeviceId) -> bool;
    erase(user: UserKey) -> u64;
    unregister_current(registration: Registration) -> bool;
    disable(registration: Registration, disabled: Disabled) -> bool;
    record_failure(registration: Registration, now: Timestamp) -> Option<FailingStreak>;
    record_success(registration: Registration) -> ();
    of(users: &[UserKey]) -> Vec<Vec<Device>>;
    has_web_push() -> bool;
    vapid_key() -> Option<Vec<u8>>;
    set_vapid_key(public_key: &[u8]) -> ();
    unregister_web_push() -> u64;
});

later!(Preferences "preferences" {
    of(users: &[UserKey]) -> Vec<herald_model::Preferences>;
    update(user: UserKey, change: &PreferencesChange) -> herald_model::Preferences;
    erase(user: UserKey) -> ();
});

later!(Timelines "timelines" {
    deliver(post: PostId, recipients: Recipients) -> Delivered;
    is_intact(losses: u64) -> bool;
    newest(user: UserKey, before: Option<PostId>, limit: usize) -> TimelinePage;
    read(users: &[UserKey]) -> Vec<TimelineEntries>;
    rebuild(users: &[UserKey]) -> Rebuilt;
    erase(user: UserKey) -> u64;
});

later!(Ledger "ledger" {
    plan(plan: SlicePlan) -> SlicePlan;
    settle(settlement: &Settlement) -> u64;
    claim(post: PostId, channel: Channel, chunk: ChunkId, base: u64, lease: Duration) -> u64;
    extend_claim(post: PostId, channel: Channel, chunk: ChunkId, revision: u64, lease: Duration) -> ();
    release_claim(post: PostId, channel: Channel, chunk: ChunkId, revision: u64) -> ();
    mark_dead(dead: &DeadMessage, at: Timestamp) -> Option<MarkedDead>;
    record_backfill(posts: &[PostId], recipients: &Recipients) -> ();
    outcome(post: PostId, channel: Channel, chunk: ChunkId) -> Option<RecordedOutcome>;
    counts(post: PostId) -> Option<PostCounts>;
    recipients(
        post: PostId,
        channel: Channel,
        state: Option<DeliveryState>,
        after: Option<UserKey>,
        limit: usize
    ) -> Vec<RecipientStatus>;
    posts(after: Option<PostId>, limit: usize) -> Vec<PostId>;
    audit(post: PostId) -> Option<PostPlan>;
});

later!(Totals "totals" {
    seen(stream: &str, sequences: &[u64]) -> Vec<bool>;
    counted(chunks: &[ChunkRef]) -> Vec<Counted>;
    intend(file: &str, owner: &Fence) -> ();
    intended() -> Vec<IntendedFile>;
    abandon(file: &str) -> bool;
    forget(file: &str) -> ();
    commit(batch: &TotalsBatch) -> ();
    post_totals(post: PostId) -> Option<PostTotals>;
    hour_totals(start: u32, end: u32) -> Vec<(u32, Counts)>;
});

later!(DeadLetters "dead_letters" {
    insert(dead_letters: &[DeadLetter]) -> Vec<Inserted>;
    reopen(reopening: &Reopening) -> Reopened;
    get(ids: &[DeadLetterId]) -> Vec<Option<DeadLetter>>;
    scan(filter: &DeadLetterFilter, order: Order, after: Option<DeadLetterId>, limit: usize) -> DeadLetterPage;
    groups(filter: &DeadLetterFilter) -> DeadLetterGroups;
    count(state: DeadLetterState) -> u64;
    begin(operation: &NewOperation, dead_letters: &[DeadLetterVersion]) -> Operation;
    begin_below(operation: &NewOperation, dead_letters: &[DeadLetterVersion], running_max: u64) -> Operation;
    claim(operation: OperationId, limit: usize, redrive_after: u64, at: Timestamp, fence: &Fence) -> Step;
    sent(operation: OperationId, dead_letters: &[(DeadLetterVersion, u64)]) -> ();
    resolve(dead_letters: &[DeadLetterVersion], at: Timestamp) -> u64;
    discard(operation: OperationId, limit: usize, at: Timestamp) -> Step;
    finish(operation: OperationId, state: OperationState, reason: &str, at: Timestamp) -> Operation;
    operation(id: OperationId) -> Option<Operation>;
    operations(before: Option<OperationId>, limit: usize) -> Vec<Operation>;
    running() -> Vec<Operation>;
});

later!(Erasures {
    begin(id: &UserId, actor: &str, now: Timestamp) -> Option<Erasure>;
    begin_again(user: UserKey, post: PostId, actor: &str, now: Timestamp) -> Option<Erasure>;
    get(id: ErasureId) -> Option<Erasure>;
    running() -> Vec<Erasure>;
    add(id: ErasureId, counts: &ErasedCounts) -> ();
    is_forgotten(id: ErasureId) -> bool;
    record_forgotten(id: ErasureId, forgotten: &Forgotten) -> ();
    complete(id: ErasureId, now: Timestamp) -> ();
    list(before: Option<ErasureId>, limit: usize) -> Vec<Erasure>;
});

later!(Leases {
    acquire(name: &str, holder: &str, duration: Duration) -> Option<Fence>;
    renew(fence: &Fence, duration: Duration) -> ();
    release(fence: &Fence) -> ();
});

later!(ApiKeys {
    insert(key: &ApiKey, now: Timestamp) -> ();
    revoke(id: ApiKeyId, at: Timestamp) -> Option<ApiKey>;
    all() -> Vec<ApiKey>;
});

later!(StreamMarks {
    record(marks: &[StreamMark]) -> ();
    all() -> Vec<StreamMark>;
});

later!(Retention {
    trim(now: Timestamp) -> ();
    observe_clock(now: Timestamp) -> ClockCheck;
});
