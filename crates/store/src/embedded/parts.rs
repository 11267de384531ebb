//! The parts of the engine, but for timelines and the ledger.

use std::{sync::Arc, time::Duration};

use super::{
    Config, databases::Databases, devices::DeviceBook, follows::Graph, ledger::Ledger, letters::LetterBook,
    maintenance::Chores, posts::Archive, preferences::PreferenceBook, timelines::EmbeddedTimelines,
    totals::TotalsBook, users::Dictionary,
};
use crate::Result;

/// All of them, open.
pub(super) struct Parts {
    pub(super) users: Arc<Dictionary>,
    pub(super) follows: Arc<Graph>,
    pub(super) posts: Arc<Archive>,
    pub(super) devices: Arc<DeviceBook>,
    pub(super) preferences: Arc<PreferenceBook>,
    pub(super) totals: Arc<TotalsBook>,
    pub(super) letters: Arc<LetterBook>,
}

impl Parts {
    /// Opens them.
    pub(super) fn open(databases: &Databases, config: &Config) -> Result<Self> {
        let hours = |hours: u64| Duration::from_secs(hours.saturating_mul(60 * 60));
        let bytes = |mb: u64| mb.saturating_mul(1 << 20);
        let records = &databases.records;
        Ok(Self {
            users: Arc::new(Dictionary::open(records, bytes(config.users_cache_mb))?),
            follows: Arc::new(Graph::open(
                records,
                hours(config.follow_history_keep_hours),
                bytes(config.follows_cache_mb),
            )?),
            posts: Arc::new(Archive::open(
                records,
                hours(config.request_keep_hours),
                bytes(config.posts_cache_mb),
            )?),
            devices: Arc::new(DeviceBook::open(records, bytes(config.devices_cache_mb))?),
            preferences: Arc::new(PreferenceBook::open(records, bytes(config.preferences_cache_mb))?),
            totals: Arc::new(TotalsBook::open(&databases.totals)?),
            letters: Arc::new(LetterBook::open(&databases.letters)?),
        })
    }

    /// What has to be forgotten from time to time.
    pub(super) fn chores(
        &self,
        timelines: &Arc<EmbeddedTimelines>,
        ledger: &Arc<Ledger>,
        config: &Config,
    ) -> Chores {
        let days = |days: u64| Duration::from_secs(days.saturating_mul(24 * 60 * 60));
        Chores {
            follows: Arc::clone(&self.follows),
            posts: Arc::clone(&self.posts),
            timelines: Arc::clone(timelines),
            ledger: Arc::clone(ledger),
            letters: Arc::clone(&self.letters),
            totals: Arc::clone(&self.totals),
            timeline_keep: days(config.timeline_keep_days),
            ledger_keep: days(config.ledger_keep_days),
            letter_history_keep: days(config.letter_history_keep_days),
        }
    }
}
