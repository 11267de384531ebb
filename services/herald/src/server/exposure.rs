//! Which ports other machines can reach, and whether callers must prove there who they are.
//!
//! A port that other machines reach and that asks for no credentials lets everybody on the network do everything. Nobody
//! shall get that by an address alone: the start is refused unless the operator says that he wants it.

use std::net::{IpAddr, SocketAddr};

use super::{
    Config,
    roles::{Role, Roles},
};

/// What a gRPC port serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortKind {
    /// The public API.
    Public,
    /// Operators' calls.
    Operators,
    /// The calls of other roles.
    Internal,
}

/// A gRPC port of a process.
#[derive(Debug, Clone, Copy)]
struct GrpcPort {
    /// Key of the setting, which is the name of the flag too but for the dash.
    key: &'static str,
    address: SocketAddr,
    kind: PortKind,
}

impl GrpcPort {
    fn is_reachable(&self) -> bool {
        !is_loopback(self.address.ip())
    }
}

/// Whether only programs of this machine reach an address.
fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

impl PortKind {
    /// What a caller without credentials can do.
    const fn risk(self) -> &'static str {
        match self {
            Self::Public => "read and change the posts, follows and devices of every user",
            Self::Operators => {
                "read, send again and discard all dead letters, and audit and rebuild everything"
            }
            Self::Internal => "make the calls of Herald's own processes",
        }
    }

    /// The settings that make callers prove who they are.
    const fn remedy(self) -> &'static str {
        match self {
            Self::Public | Self::Operators => {
                "switch authentication on (auth.enabled, `herald up --auth`) or require client certificates (tls.client_certificates = \
                 \"required\")"
            }
            Self::Internal => "require client certificates (internal_tls.client_ca_file)",
        }
    }
}

impl Config {
    /// Refuses ports that other machines can reach and that ask for no credentials, unless `insecure_no_auth` is set. The
    /// error starts with the key of the setting.
    pub(super) fn validate_exposure(&self, roles: &Roles) -> Result<(), String> {
        let exposed = self.exposed_ports(roles).next();
        match exposed.filter(|_| !self.insecure_no_auth) {
            None => Ok(()),
            Some(GrpcPort { key, address, kind }) => Err(format!(
                "{key} must not be an address that other machines reach while calls there need no credentials, is {address}: \
                 everybody there could {}. Either {}, or listen on loopback (--{} 127.0.0.1:{}), or, in a network whose machines \
                 you all trust, accept it (--insecure-no-auth, HERALD_INSECURE_NO_AUTH=true)",
                kind.risk(),
                kind.remedy(),
                key.replace('_', "-"),
                address.port(),
            )),
        }
    }

    /// Logs which ports are open to other machines because `insecure_no_auth` is set.
    pub(super) fn warn_of_exposed_ports(&self, roles: &Roles) {
        for GrpcPort { key, address, .. } in self.exposed_ports(roles) {
            tracing::warn!(
                port = key,
                %address,
                "calls from other machines need no credentials, because insecure_no_auth is set"
            );
        }
    }

    /// Logs, once for all ports, that calls from other machines are in plain text.
    pub(super) fn warn_of_plain_text(&self, roles: &Roles) {
        if let Some(warning) = self.plain_text_warning(roles) {
            tracing::warn!("{warning}");
        }
    }

    /// What to say about the ports that other machines reach without TLS; `None` if there are none.
    fn plain_text_warning(&self, roles: &Roles) -> Option<String> {
        let ports: Vec<GrpcPort> = self
            .grpc_ports(roles)
            .filter(|port| port.is_reachable() && !has_tls(self, port.kind))
            .collect();
        let keys: Vec<&str> = ports.iter().map(|port| port.key).collect();
        let is_internal = |port: &GrpcPort| port.kind == PortKind::Internal;
        let settings = match (ports.iter().any(is_internal), ports.iter().all(is_internal)) {
            (_, true) => "internal_tls.cert_file and internal_tls.key_file",
            (true, false) => "cert_file and key_file of tls and of internal_tls",
            (false, false) => "tls.cert_file and tls.key_file, or start `herald up` with --tls",
        };
        (!ports.is_empty()).then(|| {
            format!(
                "calls from other machines are in plain text ({}): everybody on their way can read keys, tokens and posts; set \
                 {settings}, unless a proxy or the network encrypts these calls",
                keys.join(", ")
            )
        })
    }

    /// Whether programs of this machine can call the gateway of the process without credentials.
    pub(crate) fn is_open_to_local_programs(&self, roles: &Roles) -> bool {
        self.grpc_ports(roles)
            .any(|port| port.kind != PortKind::Internal && !is_authenticated(self, port.kind))
    }

    /// The ports that other machines reach without credentials.
    fn exposed_ports(&self, roles: &Roles) -> impl Iterator<Item = GrpcPort> {
        self.grpc_ports(roles)
            .filter(|port| port.is_reachable() && !is_authenticated(self, port.kind))
    }

    /// The gRPC ports of a process that serve more than its health.
    fn grpc_ports(&self, roles: &Roles) -> impl Iterator<Item = GrpcPort> {
        let port = |key, address: Option<SocketAddr>, kind| {
            Some(GrpcPort {
                key,
                address: address?,
                kind,
            })
        };
        let has_gateway = roles.has(Role::Gateway);
        let ports = if has_gateway {
            [
                port("grpc", Some(self.grpc), PortKind::Public),
                port("operator_grpc", Some(self.operator_grpc), PortKind::Operators),
                port("internal_grpc", self.internal_grpc, PortKind::Internal),
            ]
        } else {
            let internal = roles.are_called().then_some(self.grpc);
            [port("grpc", internal, PortKind::Internal), None, None]
        };
        ports.into_iter().flatten()
    }
}

/// Whether calls at a port need credentials.
fn is_authenticated(config: &Config, kind: PortKind) -> bool {
    match kind {
        PortKind::Public | PortKind::Operators => {
            config.auth.enabled || config.tls.requires_client_certificates()
        }
        PortKind::Internal => config.internal_tls.requires_client_certificates(),
    }
}

/// Whether calls at a port are encrypted.
fn has_tls(config: &Config, kind: PortKind) -> bool {
    let certificate = match kind {
        PortKind::Public | PortKind::Operators => &config.tls.cert_file,
        PortKind::Internal => &config.internal_tls.cert_file,
    };
    certificate.is_some()
}

#[cfg(test)]
mod tests {
    use herald_runtime::tls::ClientCertificates;

    use super::*;

    const LOOPBACK: [&str; 4] = ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "[::ffff:127.0.0.1]:1"];
    const REACHABLE: [&str; 6] = [
        "0.0.0.0:1",
        "[::]:1",
        "192.168.1.7:1",
        "[fe80::1]:1",
        "203.0.113.7:1",
        "[::ffff:10.0.0.1]:1",
    ];

    fn roles(roles: &[Role]) -> Roles {
        roles.iter().copied().collect()
    }

    /// A setting of an address.
    type Set = fn(&mut Config, SocketAddr);

    #[test]
    fn a_reachable_port_without_credentials_is_refused() {
        let cases: [(&str, Set, &[Role], &str); 5] = [
            ("grpc", |c, a| c.grpc = a, &Role::WHOLE, "auth.enabled"),
            (
                "operator_grpc",
                |c, a| c.operator_grpc = a,
                &[Role::Gateway],
                "auth.enabled",
            ),
            (
                "internal_grpc",
                |c, a| c.internal_grpc = Some(a),
                &[Role::Gateway, Role::Graph],
                "internal_tls.client_ca_file",
            ),
            (
                "grpc",
                |c, a| c.grpc = a,
                &[Role::Graph],
                "internal_tls.client_ca_file",
            ),
            (
                "grpc",
                |c, a| c.grpc = a,
                &[Role::Scaler],
                "internal_tls.client_ca_file",
            ),
        ];
        for (key, set, of, remedy) in cases {
            let of = roles(of);
            for address in LOOPBACK {
                let mut config = Config::default();
                set(&mut config, address.parse().unwrap());
                assert_eq!(config.validate_exposure(&of), Ok(()), "{key} {address}");
            }
            for address in REACHABLE {
                let mut config = Config::default();
                set(&mut config, address.parse().unwrap());
                let refused = config.validate_exposure(&of).unwrap_err();
                let start = format!("{key} must not be an address that other machines reach");
                assert!(refused.starts_with(&start), "{refused}");
                let flag = format!("--{} 127.0.0.1:1)", key.replace('_', "-"));
                for part in [address, remedy, &flag, "--insecure-no-auth"] {
                    assert!(refused.contains(part), "{part}: {refused}");
                }
                config.insecure_no_auth = true;
                assert_eq!(config.validate_exposure(&of), Ok(()), "{key} {address}");
            }
        }
    }

    #[test]
    fn keys_and_tokens_are_credentials_of_the_gateways_ports_alone() {
        let reachable: SocketAddr = "0.0.0.0:1".parse().unwrap();
        let mut config = Config {
            grpc: reachable,
            operator_grpc: reachable,
            ..Config::default()
        };
        assert!(config.validate_exposure(&Roles::whole()).is_err());
        assert!(config.is_open_to_local_programs(&Roles::whole()));
        config.auth.enabled = true;
        assert_eq!(config.validate_exposure(&Roles::whole()), Ok(()));
        assert!(!config.is_open_to_local_programs(&Roles::whole()));
        assert!(config.validate_exposure(&roles(&[Role::Graph])).is_err());
        config.internal_grpc = Some(reachable);
        let refused = config.validate_exposure(&Roles::whole()).unwrap_err();
        assert!(refused.starts_with("internal_grpc "), "{refused}");
    }

    #[test]
    fn required_client_certificates_are_credentials() {
        let reachable: SocketAddr = "0.0.0.0:1".parse().unwrap();
        let file = |name: &str| Some(name.into());
        let mut config = Config {
            grpc: reachable,
            operator_grpc: reachable,
            ..Config::default()
        };
        config.tls.cert_file = file("tls.crt");
        config.tls.key_file = file("tls.key");
        // TLS alone hides calls and asks nobody who he is.
        assert!(config.validate_exposure(&Roles::whole()).is_err());
        config.tls.client_ca_file = file("ca.crt");
        assert_eq!(config.validate_exposure(&Roles::whole()), Ok(()));
        assert!(!config.is_open_to_local_programs(&Roles::whole()));
        config.tls.client_certificates = ClientCertificates::Optional;
        assert!(config.validate_exposure(&Roles::whole()).is_err());
        // Those of the public port don't count between roles.
        let graph = roles(&[Role::Graph]);
        assert!(config.validate_exposure(&graph).is_err());
        config.internal_tls.cert_file = file("tls.crt");
        config.internal_tls.key_file = file("tls.key");
        assert!(config.validate_exposure(&graph).is_err());
        config.internal_tls.client_ca_file = file("ca.crt");
        assert_eq!(config.validate_exposure(&graph), Ok(()));
    }

    #[test]
    fn a_reachable_port_without_tls_has_a_warning_that_names_the_settings() {
        let reachable: SocketAddr = "0.0.0.0:1".parse().unwrap();
        let mut config = Config::default();
        config.auth.enabled = true;
        assert_eq!(config.plain_text_warning(&Roles::whole()), None);
        config.grpc = reachable;
        config.operator_grpc = reachable;
        let warning = config.plain_text_warning(&Roles::whole()).unwrap();
        for part in ["(grpc, operator_grpc)", "plain text", "tls.cert_file", "--tls"] {
            assert!(warning.contains(part), "{warning}");
        }
        config.internal_grpc = Some(reachable);
        let warning = config.plain_text_warning(&Roles::whole()).unwrap();
        assert!(warning.contains("of tls and of internal_tls"), "{warning}");
        config.tls.cert_file = Some("tls.crt".into());
        let warning = config.plain_text_warning(&Roles::whole()).unwrap();
        assert!(
            warning.contains("(internal_grpc)") && warning.contains("set internal_tls.cert_file"),
            "{warning}"
        );
        config.internal_tls.cert_file = Some("tls.crt".into());
        assert_eq!(config.plain_text_warning(&Roles::whole()), None);
        assert_eq!(config.plain_text_warning(&roles(&[Role::Graph])), None);
        config.internal_tls.cert_file = None;
        assert!(config.plain_text_warning(&roles(&[Role::Graph])).is_some());
        // Health alone.
        assert_eq!(config.plain_text_warning(&roles(&[Role::Push])), None);
    }

    #[test]
    fn a_port_that_is_not_served_is_not_looked_at() {
        let reachable: SocketAddr = "0.0.0.0:1".parse().unwrap();
        // Health alone.
        let mut config = Config {
            grpc: reachable,
            ..Config::default()
        };
        for of in [Role::Push, Role::Timeline, Role::Fanout, Role::Archive] {
            assert_eq!(config.validate_exposure(&roles(&[of])), Ok(()), "{of}");
        }
        // The settings of a gateway, in a process without it.
        config.grpc = Config::default().grpc;
        config.operator_grpc = reachable;
        config.internal_grpc = Some(reachable);
        assert_eq!(config.validate_exposure(&roles(&[Role::Graph])), Ok(()));
    }

    #[test]
    fn a_gateway_without_authentication_is_open_to_local_programs() {
        let config = Config::default();
        assert!(config.is_open_to_local_programs(&Roles::whole()));
        assert!(!config.is_open_to_local_programs(&roles(&[Role::Graph])));
    }
}
