//! The stores of the engine, except timelines and the ledger.

use std::{sync::Arc, time::Duration};

use super::{
    Config,
    api_keys::EmbeddedApiKeys,
    clock::Clock,
    databases::Databases,
    dead_letters::EmbeddedDeadLetters,
    devices::{Codec, EmbeddedDevices},
    erasures::EmbeddedErasures,
    follows::EmbeddedFollows,
    leases::EmbeddedLeases,
    ledger::Ledger,
    posts::EmbeddedPosts,
    preferences::EmbeddedPreferences,
    retention::Retention,
    stream_marks::EmbeddedStreamMarks,
    timelines::EmbeddedTimelines,
    totals::EmbeddedTotals,
    users::EmbeddedUsers,
};
use crate::{Metrics, Result};

/// The open stores.
pub(super) struct Parts {
    pub(super) users: Arc<EmbeddedUsers>,
    pub(super) follows: Arc<EmbeddedFollows>,
    pub(super) posts: Arc<EmbeddedPosts>,
    pub(super) devices: Arc<EmbeddedDevices>,
    pub(super) preferences: Arc<EmbeddedPreferences>,
    pub(super) totals: Arc<EmbeddedTotals>,
    pub(super) dead_letters: Arc<EmbeddedDeadLetters>,
    pub(super) erasures: Arc<EmbeddedErasures>,
    pub(super) leases: Arc<EmbeddedLeases>,
    pub(super) api_keys: Arc<EmbeddedApiKeys>,
    pub(super) stream_marks: Arc<EmbeddedStreamMarks>,
}

impl Parts {
    /// Opens the stores.
    pub(super) fn open(databases: &Databases, config: &Config, metrics: &Metrics) -> Result<Self> {
        let hours = |hours: u64| Duration::from_secs(hours.saturating_mul(60 * 60));
        let bytes = |mb: u64| mb.saturating_mul(1 << 20);
        let records = &databases.records;
        let leases = Arc::new(EmbeddedLeases::open(records)?);
        let users = Arc::new(EmbeddedUsers::open(records, bytes(config.users_cache_mb))?);
        Ok(Self {
            erasures: Arc::new(EmbeddedErasures::new(&users)),
            users,
            follows: Arc::new(EmbeddedFollows::open(
                records,
                hours(config.follow_history_keep_hours),
                bytes(config.follows_cache_mb),
            )?),
            posts: Arc::new(EmbeddedPosts::open(
                records,
                hours(config.request_keep_hours),
                bytes(config.posts_cache_mb),
            )?),
            devices: Arc::new(EmbeddedDevices::open(
                records,
                bytes(config.devices_cache_mb),
                Codec::new(&config.encryption, metrics)?,
            )?),
            preferences: Arc::new(EmbeddedPreferences::open(
                records,
                bytes(config.preferences_cache_mb),
            )?),
            totals: Arc::new(EmbeddedTotals::open(&databases.totals, &leases)?),
            dead_letters: Arc::new(EmbeddedDeadLetters::open(&databases.dead_letters, &leases)?),
            leases,
            api_keys: Arc::new(EmbeddedApiKeys::open(records)?),
            stream_marks: Arc::new(EmbeddedStreamMarks::open(records)?),
        })
    }

    /// The retention of all stores.
    pub(super) fn retention(
        &self,
        timelines: &Arc<EmbeddedTimelines>,
        ledger: &Arc<Ledger>,
        clock: Clock,
        config: &Config,
        metrics: &Metrics,
    ) -> Retention {
        let days = |days: u64| Duration::from_secs(days.saturating_mul(24 * 60 * 60));
        Retention {
            clock,
            follows: Arc::clone(&self.follows),
            posts: Arc::clone(&self.posts),
            timelines: Arc::clone(timelines),
            ledger: Arc::clone(ledger),
            dead_letters: Arc::clone(&self.dead_letters),
            totals: Arc::clone(&self.totals),
            timeline_keep: days(config.timeline_keep_days),
            ledger_keep: days(config.ledger_keep_days),
            dead_letter_operation_keep: days(config.dead_letter_operation_keep_days),
            deleted_text_keep: Duration::from_secs(config.deleted_text_keep_hours.saturating_mul(60 * 60)),
            post_keep: config.post_keep_days.map(days),
            metrics: metrics.clone(),
        }
    }
}
