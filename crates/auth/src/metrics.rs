//! Every metric of this crate.

use herald_metrics::{Counter, Family, Registry};

/// The metrics of authentication.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Reads of the API keys from the store, by result.
    pub key_reads: Family<[(&'static str, &'static str); 1], Counter>,
    /// Reads of the issuer's keys (JWKS), by result.
    pub jwks_reads: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "auth_key_reads",
            "Reads of the API keys from the store, by result",
            metrics.key_reads.clone(),
        );
        registry.register(
            "auth_jwks_reads",
            "Reads of the issuer's keys, by result",
            metrics.jwks_reads.clone(),
        );
        metrics
    }

    /// Counts a read of the API keys.
    pub fn count_key_read(&self, succeeded: bool) {
        self.key_reads.get_or_create(&[result(succeeded)]).inc();
    }

    pub(crate) fn count_jwks_read(&self, succeeded: bool) {
        self.jwks_reads.get_or_create(&[result(succeeded)]).inc();
    }
}

fn result(succeeded: bool) -> (&'static str, &'static str) {
    ("result", if succeeded { "ok" } else { "error" })
}
