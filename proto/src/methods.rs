//! The methods of the services.

use std::{collections::HashMap, sync::LazyLock};

use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

use crate::{API_DESCRIPTORS, DESCRIPTORS, SCALER_DESCRIPTORS};

include!(concat!(env!("OUT_DIR"), "/methods.rs"));

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

fn files(descriptors: &[u8]) -> Vec<FileDescriptorProto> {
    FileDescriptorSet::decode(descriptors).map_or_else(|_| Vec::new(), |set| set.file)
}

/// All methods that roles of Herald serve, the internal ones and those for KEDA included: the full name of the service and the
/// name of the method.
pub fn all_methods() -> Vec<(String, String)> {
    let mut methods = Vec::new();
    for file in files(DESCRIPTORS).iter().chain(&files(SCALER_DESCRIPTORS)) {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            let of_service = service.method.iter();
            methods.extend(of_service.map(|method| (name.clone(), method.name().to_owned())));
        }
    }
    methods
}

/// The methods of the public API, by path.
static METHODS: LazyLock<HashMap<String, MethodKind>> = LazyLock::new(|| {
    let mut methods = HashMap::new();
    for file in &files(API_DESCRIPTORS) {
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
    fn internal_methods_are_among_all() {
        let methods = all_methods();
        for (service, method) in [
            ("herald.v1.PostService", "SubmitPost"),
            ("herald.mesh.v1.FollowerService", "ExportFollowers"),
            ("externalscaler.ExternalScaler", "GetMetrics"),
        ] {
            assert!(methods.contains(&(service.into(), method.into())), "{methods:?}");
        }
    }

    #[test]
    fn the_enum_has_each_method_once() {
        let described: Vec<_> = all_methods()
            .iter()
            .map(|(service, method)| format!("/{service}/{method}"))
            .collect();
        assert_eq!(described.len(), Method::ALL.len());
        for path in described {
            assert_eq!(Method::from_path(&path).map(Method::path), Some(&path[..]));
        }
        assert_eq!(Method::from_path("/herald.v1.PostService/ComesLater"), None);
    }

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
            "/herald.v1.UserDataService/ExportUser",
            "/herald.v1.UserDataService/EraseUser",
            "/herald.v1.GraphService/ComesLater",
        ] {
            assert!(!is_unary(path), "{path}");
        }
    }
}
