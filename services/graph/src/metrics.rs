//! Every metric of this service.

use herald_runtime::metrics::{Counter, Registry};

/// The graph service's metrics.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Follows and unfollows that changed the graph.
    pub follow_changes: Counter,
    /// New follows refused because their follower has no room in the quota.
    pub follows_refused: Counter,
    /// Followers sent by ExportFollowers.
    pub followers_exported: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "graph_follow_changes",
            "Follows and unfollows that changed the graph",
            metrics.follow_changes.clone(),
        );
        registry.register(
            "graph_follows_refused",
            "New follows refused because their user follows as many authors as graph.following_max allows",
            metrics.follows_refused.clone(),
        );
        registry.register(
            "graph_followers_exported",
            "Followers sent by ExportFollowers",
            metrics.followers_exported.clone(),
        );
        metrics
    }
}
