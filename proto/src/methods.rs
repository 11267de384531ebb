//! The methods of the public API.

use std::{collections::HashMap, sync::LazyLock};

use prost::Message as _;
use prost_types::FileDescriptorSet;

use crate::API_DESCRIPTORS;

/// How many requests and responses a method has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MethodKind {
    /// One request, one response.
    Unary,
    /// Many requests, one response.
    RequestStream,
    /// Many responses.
    ResponseStream,
}

/// The methods of the public API, by path.
static METHODS: LazyLock<HashMap<String, MethodKind>> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(API_DESCRIPTORS).map_or_else(|_| Vec::new(), |set| set.file);
    let mut methods = HashMap::new();
    for file in &files {
        for service in &file.service {
            for method in &service.method {
                let kind = match (method.client_streaming(), method.server_streaming()) {
                    (false, false) => MethodKind::Unary,
                    (true, false) => MethodKind::RequestStream,
                    (_, true) => MethodKind::ResponseStream,
                };
                let (package, service) = (file.package(), service.name());
                methods.insert(format!("/{package}.{service}/{}", method.name()), kind);
            }
        }
    }
    methods
});

/// The kind of the method of the public API that the path of a call names; `None` for methods that this version doesn't
/// know.
pub fn method_kind(path: &str) -> Option<MethodKind> {
    METHODS.get(path).copied()
}

/// Whether the path of a call names a method of the public API with one request and one response. `false` for streams, and
/// for methods that this version doesn't know.
pub fn is_unary(path: &str) -> bool {
    method_kind(path) == Some(MethodKind::Unary)
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
