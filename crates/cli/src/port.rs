//! The ports of a gateway that commands call.

/// One of the two gRPC ports of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The public API.
    Public,
    /// Calls of operators: dead letters, audits, the state of the mesh.
    Operators,
}

impl Port {
    /// How a command gets the address.
    pub(crate) const fn option(self) -> &'static str {
        match self {
            Self::Public => "--server or HERALD_SERVER",
            Self::Operators => "--operator-server or HERALD_OPERATOR_SERVER",
        }
    }

    /// The address that a command calls by default, and a server listens at.
    pub(crate) const fn default_address(self) -> &'static str {
        match self {
            Self::Public => "127.0.0.1:7700",
            Self::Operators => "127.0.0.1:7702",
        }
    }

    /// The name in messages.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "gRPC port",
            Self::Operators => "operator port",
        }
    }
}
