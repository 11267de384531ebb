//! Which URLs a push may be sent to.
//!
//! Callers choose the URL, so it must not lead into the operator's own network (SSRF). The gateway checks the URL when a
//! device is registered, the push service checks it again before each request, and its resolver checks each address that
//! a host name resolves to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// The longest endpoint, bytes.
pub const URL_BYTES_MAX: usize = 2_048;

/// What the operator allows beside https to the public internet. By default nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Whether plain http is accepted beside https. Default: false.
    pub allow_http: bool,
    /// Whether addresses are accepted that are not on the public internet: loopback, private, link-local (cloud
    /// metadata), shared, reserved. Default: false.
    pub allow_private: bool,
}

/// Why an endpoint is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is longer than [`URL_BYTES_MAX`].
    #[error("must be at most {URL_BYTES_MAX} bytes long, is {0}")]
    TooLong(usize),
    /// It is no absolute URL with a host.
    #[error("is not an absolute URL with a host")]
    Malformed,
    /// The scheme is http, and that isn't allowed.
    #[error("must be https; plain http is not allowed here")]
    PlainHttp,
    /// The scheme is neither http nor https.
    #[error("must be https")]
    Scheme,
    /// There is a user name or a password in it.
    #[error("must not contain a user name or a password")]
    UserInfo,
    /// There is a fragment in it, which no request would carry.
    #[error("must not contain a fragment")]
    Fragment,
    /// The port is 0.
    #[error("must not have port 0")]
    Port,
    /// The host is a name of this machine or of a private network.
    #[error("must not name a private host")]
    PrivateName,
    /// The host is an address that is not on the public internet.
    #[error("must not point to the private address {0}")]
    PrivateAddress(IpAddr),
}

/// Checks an endpoint as it is written. What a name resolves to is checked when it is called.
pub fn check_url(url: &str, policy: Policy) -> Result<(), EndpointError> {
    if url.len() > URL_BYTES_MAX {
        return Err(EndpointError::TooLong(url.len()));
    }
    let url = Url::parse(url).map_err(|_| EndpointError::Malformed)?;
    check_parsed(&url, policy)
}

/// [`check_url`] of a parsed URL, without the limit on its length.
pub fn check_parsed(url: &Url, policy: Policy) -> Result<(), EndpointError> {
    match url.scheme() {
        "https" => {}
        "http" if policy.allow_http => {}
        "http" => return Err(EndpointError::PlainHttp),
        _ => return Err(EndpointError::Scheme),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(EndpointError::UserInfo);
    }
    if url.fragment().is_some() {
        return Err(EndpointError::Fragment);
    }
    if url.port() == Some(0) {
        return Err(EndpointError::Port);
    }
    let private = match url.host().ok_or(EndpointError::Malformed)? {
        Host::Ipv4(address) => private_address(address.into()),
        Host::Ipv6(address) => private_address(address.into()),
        Host::Domain(name) => private_name(name).then_some(EndpointError::PrivateName),
    };
    match private {
        Some(e) if !policy.allow_private => Err(e),
        _ => Ok(()),
    }
}

/// Whether an address lies on the public internet, as far as IANA's special-purpose registries tell.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn private_address(address: IpAddr) -> Option<EndpointError> {
    (!is_public(address)).then_some(EndpointError::PrivateAddress(address))
}

/// Names that only ever mean this machine or its network (RFC 6761, RFC 6762, RFC 8375, the `.internal` TLD), and
/// names without a dot, which a search list would complete.
fn private_name(name: &str) -> bool {
    const SUFFIXES: [&str; 7] = [
        "localhost",
        "localdomain",
        "local",
        "internal",
        "intranet",
        "lan",
        "home.arpa",
    ];
    let name = name.trim_end_matches('.');
    let under = |suffix: &str| {
        name.strip_suffix(suffix)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    !name.contains('.') || SUFFIXES.into_iter().any(under)
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match (a, b, c) {
        // Carrier-grade NAT.
        (100, b, _) => (64..128).contains(&b),
        // Protocol assignments, AS112, AMT, 6to4 relays, AS112 again; benchmarks; "this network", which many systems
        // take for themselves; multicast, reserved, broadcast.
        (192, 0, 0)
        | (192, 31, 196)
        | (192, 52, 193)
        | (192, 88, 99)
        | (192, 175, 48)
        | (198, 18 | 19, _)
        | (0 | 224.., _, _) => true,
        _ => false,
    };
    !(special
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Ways to write an IPv4 address: it is what counts.
    let [.., high, low] = segments;
    let tail = Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match segments {
        // ::ffff:a.b.c.d (mapped), ::a.b.c.d (compatible: `::` and `::1` are in it), 64:ff9b::a.b.c.d (NAT64)
        [0, 0, 0, 0, 0, 0xffff | 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(tail),
        // 6to4 carries the IPv4 address after its prefix.
        [0x2002, high, low, ..] => is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
        // Teredo, ORCHID, benchmarks, protocol assignments, documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Global unicast; all else is ULA, link-local, multicast, discard or not given out.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: Policy = Policy {
        allow_http: false,
        allow_private: false,
    };

    #[test]
    fn each_bad_url_has_its_own_error() {
        use EndpointError::*;
        let private = |ip: &str| Err(PrivateAddress(ip.parse().unwrap()));
        let table: &[(&str, Result<(), EndpointError>)] = &[
            ("https://push.example.com/abc?x=1", Ok(())),
            ("https://push.example.com:8443/abc", Ok(())),
            ("https://8.8.8.8/", Ok(())),
            ("https://[2606:4700::1111]/", Ok(())),
            ("", Err(Malformed)),
            ("push.example.com/abc", Err(Malformed)),
            ("https://", Err(Malformed)),
            ("https://push.example.com:99999/", Err(Malformed)),
            ("http://push.example.com/", Err(PlainHttp)),
            ("ftp://push.example.com/", Err(Scheme)),
            ("file:///etc/passwd", Err(Scheme)),
            ("javascript:alert(1)", Err(Scheme)),
            ("https://user@push.example.com/", Err(UserInfo)),
            ("https://user:word@push.example.com/", Err(UserInfo)),
            ("https://push.example.com/#part", Err(Fragment)),
            ("https://push.example.com:0/", Err(Port)),
            ("https://localhost/", Err(PrivateName)),
            ("https://LOCALHOST./", Err(PrivateName)),
            ("https://a.localhost/", Err(PrivateName)),
            ("https://metadata/", Err(PrivateName)),
            ("https://metadata.google.internal/", Err(PrivateName)),
            ("https://printer.local/", Err(PrivateName)),
            ("https://notlocal.example/", Ok(())),
            ("https://127.0.0.1/", private("127.0.0.1")),
            ("https://2130706433/", private("127.0.0.1")),
            ("https://0x7f.1/", private("127.0.0.1")),
            ("https://0177.0.0.1/", private("127.0.0.1")),
            ("https://0/", private("0.0.0.0")),
            ("https://169.254.169.254/latest/", private("169.254.169.254")),
            ("https://[::1]/", private("::1")),
            ("https://[::ffff:10.0.0.1]/", private("::ffff:10.0.0.1")),
        ];
        for (url, expected) in table {
            assert_eq!(check_url(url, PUBLIC), *expected, "{url}");
        }
        let long = format!("https://push.example.com/{}", "a".repeat(URL_BYTES_MAX));
        assert_eq!(check_url(&long, PUBLIC), Err(TooLong(long.len())));
    }

    #[test]
    fn what_an_operator_allows_is_accepted_and_nothing_else() {
        let http = Policy {
            allow_http: true,
            ..PUBLIC
        };
        assert_eq!(check_url("http://push.example.com/", http), Ok(()));
        assert_eq!(
            check_url("http://localhost/", http),
            Err(EndpointError::PrivateName)
        );
        assert_eq!(
            check_url("gopher://push.example.com/", http),
            Err(EndpointError::Scheme)
        );
        let private = Policy {
            allow_private: true,
            ..PUBLIC
        };
        assert_eq!(check_url("https://localhost/", private), Ok(()));
        assert_eq!(check_url("https://10.0.0.1/", private), Ok(()));
        assert_eq!(
            check_url("http://10.0.0.1/", private),
            Err(EndpointError::PlainHttp)
        );
    }

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        let table: &[(&str, bool)] = &[
            ("1.1.1.1", true),
            ("9.9.9.9", true),
            ("100.63.255.255", true),
            ("100.128.0.0", true),
            ("172.15.0.1", true),
            ("172.32.0.1", true),
            ("192.0.1.1", true),
            ("198.17.0.1", true),
            ("223.255.255.255", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("10.255.0.1", false),
            ("100.64.0.1", false),
            ("100.127.255.255", false),
            ("127.0.0.1", false),
            ("127.255.255.254", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.0.0.170", false),
            ("192.0.2.1", false),
            ("192.88.99.1", false),
            ("192.168.1.1", false),
            ("198.18.0.1", false),
            ("198.51.100.1", false),
            ("203.0.113.1", false),
            ("224.0.0.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:4700::1111", true),
            ("2a00:1450::1", true),
            ("2001:4860::8888", true),
            ("2002:0808:0808::1", true),
            ("64:ff9b::8.8.8.8", true),
            ("::ffff:8.8.8.8", true),
            ("::", false),
            ("::1", false),
            ("::127.0.0.1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("64:ff9b::10.0.0.1", false),
            ("64:ff9b:1::1", false),
            ("100::1", false),
            ("2001::1", false),
            ("2001:2::1", false),
            ("2001:20::1", false),
            ("2001:db8::1", false),
            ("2002:7f00:1::1", false),
            ("2002:c0a8:101::1", false),
            ("3fff::1", false),
            ("fc00::1", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("fec0::1", false),
            ("ff02::1", false),
        ];
        for (address, public) in table {
            assert_eq!(is_public(address.parse().unwrap()), *public, "{address}");
        }
    }
}
