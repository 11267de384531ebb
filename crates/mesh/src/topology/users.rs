//! Users of the NATS server.

use std::fmt;

/// A user of the NATS server: one for each role of Herald, and one that makes the streams and consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatsUser {
    /// Role `gateway`.
    Gateway,
    /// Role `archive`.
    Archive,
    /// Role `graph`.
    Graph,
    /// Role `fanout`.
    Fanout,
    /// Role `timeline`.
    Timeline,
    /// Role `push`.
    Push,
    /// Role `analytics`.
    Analytics,
    /// Role `deadletter`.
    Deadletter,
    /// Role `scaler`.
    Scaler,
    /// `herald topology`: creates and updates the streams and consumers.
    Topology,
}

impl NatsUser {
    /// All users.
    pub const ALL: [Self; 10] = [
        Self::Gateway,
        Self::Archive,
        Self::Graph,
        Self::Fanout,
        Self::Timeline,
        Self::Push,
        Self::Analytics,
        Self::Deadletter,
        Self::Scaler,
        Self::Topology,
    ];

    /// The name: that of the role.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Archive => "archive",
            Self::Graph => "graph",
            Self::Fanout => "fanout",
            Self::Timeline => "timeline",
            Self::Push => "push",
            Self::Analytics => "analytics",
            Self::Deadletter => "deadletter",
            Self::Scaler => "scaler",
            Self::Topology => "topology",
        }
    }

    /// Prefix of the subjects on which the user receives answers and pulled messages. Each user has its own, so that none
    /// can read what another one receives.
    pub fn inbox_prefix(self) -> String {
        format!("_INBOX_{self}")
    }

    /// Environment variable of nats-server with the user's public NKey. It does not begin with `HERALD_`: herald commands
    /// take such variables for settings.
    pub fn key_variable(self) -> String {
        format!("NATS_NKEY_{}", self.as_str().to_uppercase())
    }
}

impl fmt::Display for NatsUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_of_nats_server_is_no_setting_of_herald() {
        assert_eq!(NatsUser::Gateway.key_variable(), "NATS_NKEY_GATEWAY");
        for user in NatsUser::ALL {
            assert!(!user.key_variable().starts_with("HERALD_"), "{user}");
        }
    }
}
