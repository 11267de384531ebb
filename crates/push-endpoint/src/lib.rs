//! Validates the URLs of push endpoints, and brings them to one form.
//!
//! Callers choose the URL, so it must not point into the operator's own network (SSRF). The gateway checks the URL when
//! a device is registered. The push service checks the URL again before each request, and its resolver checks each
//! address that a host name resolves to.

mod canonical;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// Maximum length of an endpoint URL, bytes.
pub const URL_BYTES_MAX: usize = 2_048;

/// Endpoints that the operator allows besides https to the public internet. Default: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Whether plain http is allowed besides https. Default: false.
    pub allow_http: bool,
    /// Whether non-public addresses are allowed: loopback, private, link-local (cloud metadata), shared, reserved.
    /// Default: false.
    pub allow_private: bool,
}

/// Why an endpoint is refused. The text continues a field's name: "webhook.url must be https".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The URL is longer than [`URL_BYTES_MAX`]; has its length in bytes.
    #[error("must be at most {URL_BYTES_MAX} bytes long, is {0}")]
    TooLong(usize),
    /// The URL has white space, a control character or an invisible character, which parsers would drop or encode.
    #[error("must not contain white space, control characters or invisible characters; percent-encode them")]
    Blank,
    /// The URL is not absolute or has no host.
    #[error("is not an absolute URL with a host")]
    Malformed,
    /// The scheme is http, and the policy doesn't allow it.
    #[error("must be https; plain http is not allowed here")]
    PlainHttp,
    /// The scheme is neither http nor https.
    #[error("must be https")]
    Scheme,
    /// The URL has a user name or a password.
    #[error("must not contain a user name or a password")]
    UserInfo,
    /// The URL has a fragment, which HTTP requests don't carry.
    #[error("must not contain a fragment")]
    Fragment,
    /// The port is 0.
    #[error("must not have port 0")]
    Port,
    /// The host is a name of this machine or a private network.
    #[error("must not name a private host")]
    PrivateName,
    /// The host is a non-public address.
    #[error("must not point to the private address {0}")]
    PrivateAddress(IpAddr),
}

/// Checks an endpoint URL and returns its canonical form: the same for every spelling of the endpoint, such as another
/// case of the host name, an explicit default port, or a needless percent-encoding. A host name is not resolved: check
/// each resolved address with [`is_public`] when connecting.
pub fn parse_url(text: &str, policy: Policy) -> Result<Url, EndpointError> {
    if text.len() > URL_BYTES_MAX {
        return Err(EndpointError::TooLong(text.len()));
    }
    if text.chars().any(herald_model::is_invisible) {
        return Err(EndpointError::Blank);
    }
    let url = Url::parse(text).map_err(|_| EndpointError::Malformed)?;
    check_parsed(&url, policy)?;
    let url = canonical::canonical(url).ok_or(EndpointError::Malformed)?;
    // The encoding can make a URL longer.
    if url.as_str().len() > URL_BYTES_MAX {
        return Err(EndpointError::TooLong(url.as_str().len()));
    }
    Ok(url)
}

/// Whether two URLs are spellings of one endpoint.
pub fn is_same_endpoint(a: &str, b: &str) -> bool {
    let canonical = |text| canonical::canonical(Url::parse(text).ok()?);
    a == b || canonical(a).is_some_and(|a| canonical(b) == Some(a))
}

/// Checks a parsed URL as [`parse_url`] does, without the length limit.
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
        Host::Ipv4(address) => check_address(address.into()),
        Host::Ipv6(address) => check_address(address.into()),
        Host::Domain(name) => is_private_name(name).then_some(EndpointError::PrivateName),
    };
    match private {
        Some(e) if !policy.allow_private => Err(e),
        _ => Ok(()),
    }
}

/// Whether an address is on the public internet, according to IANA's special-purpose address registries.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn check_address(address: IpAddr) -> Option<EndpointError> {
    (!is_public(address)).then_some(EndpointError::PrivateAddress(address))
}

/// Whether a name is reserved for this machine or its network (RFC 6761, RFC 6762, RFC 8375, the `.internal` TLD), or
/// has no dot: a resolver's search list would complete it.
fn is_private_name(name: &str) -> bool {
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
        // Carrier-grade NAT (RFC 6598).
        (100, b, _) => (64..128).contains(&b),
        // Protocol assignments, AS112, AMT, 6to4 relays, AS112; benchmarks; "this network", which many systems treat as
        // their own address; multicast, reserved, broadcast.
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
    // IPv6 forms that embed an IPv4 address are checked as that address.
    let [.., high, low] = segments;
    let tail = Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match segments {
        // ::ffff:a.b.c.d (mapped), ::a.b.c.d (compatible, includes `::` and `::1`), 64:ff9b::a.b.c.d (NAT64).
        [0, 0, 0, 0, 0, 0xffff | 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(tail),
        // 6to4: the IPv4 address follows the prefix.
        [0x2002, high, low, ..] => is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
        // Teredo, ORCHID, benchmarks, protocol assignments, documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Global unicast; the rest is ULA, link-local, multicast, discard or unassigned.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests;
