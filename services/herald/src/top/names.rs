//! The metrics that the overview needs, each once.

/// Counter: posts accepted.
pub(super) const POSTS_ACCEPTED: &str = "herald_gateway_posts_accepted_total";
/// Counter: deliveries that became readable.
pub(super) const TIMELINE_DELIVERIES: &str = "herald_timeline_deliveries_total";
/// Counter: recipients of pushes that are settled, by state.
pub(super) const PUSH_RECIPIENTS: &str = "herald_push_recipients_total";
/// The label of [`PUSH_RECIPIENTS`], and its value, of pushes that a provider has accepted.
pub(super) const PUSH_DELIVERED: (&str, &str) = ("state", "delivered");
/// Histogram: time from the acceptance of a post until it is readable.
pub(super) const ACCEPT_TO_VISIBLE: &str = "herald_timeline_accept_to_visible_seconds";
/// Histogram: time from the acceptance of a post until a provider accepts its push.
pub(super) const ACCEPT_TO_PUSH: &str = "herald_push_accept_to_push_seconds";

/// What the names of a role's metrics begin with. A metric with labels is absent before its first event, but others of its
/// role are there.
pub(super) const OF_GATEWAY: &str = "herald_gateway_";
pub(super) const OF_TIMELINE: &str = "herald_timeline_";
pub(super) const OF_PUSH: &str = "herald_push_";
