//! The methods of the public API.

use std::{collections::HashSet, sync::LazyLock};

use prost::Message as _;
use prost_types::FileDescriptorSet;

use crate::API_DESCRIPTORS;

/// Paths of the methods of the public API that have one request and one response.
static UNARY: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(API_DESCRIPTORS).map_or_else(|_| Vec::new(), |set| set.file);
    let mut paths = HashSet::new();
    for file in &files {
        for service in &file.service {
            for method in &service.method {
                if !method.client_streaming() && !method.server_streaming() {
                    let (package, service) = (file.package(), service.name());
                    paths.insert(format!("/{package}.{service}/{}", method.name()));
                }
            }
        }
    }
    paths
});

/// Whether the path of a call names a method of the public API with one request and one response. `false` for streams, and
/// for methods that this version doesn't know.
pub fn is_unary(path: &str) -> bool {
    UNARY.contains(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_unknown_methods_are_not_unary() {
        for path in [
            "/herald.v1.GraphService/Follow",
            "/herald.v1.AnalyticsService/GetTotals",
            "/herald.v1.DeadLetterService/DiscardDeadLetters",
        ] {
            assert!(is_unary(path), "{path}");
        }
        for path in [
            "/herald.v1.GraphService/ImportFollows",
            "/herald.v1.AuditService/RunAudit",
            "/herald.v1.AuditService/RebuildTimelines",
            "/herald.v1.DeadLetterService/RedriveDeadLetters",
            "/herald.v1.GraphService/ComesLater",
        ] {
            assert!(!is_unary(path), "{path}");
        }
    }
}
