//! Resolves names and drops addresses that are not allowed. The filter applies when a connection is made, so it also
//! prevents DNS rebinding: a name that resolves to another address after the URL check.

use std::net::SocketAddr;

use herald_push_endpoint::is_public;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// The system resolver, without private addresses unless they are allowed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resolver {
    pub(crate) allow_private: bool,
}

/// A name resolves only to private addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name resolves only to private addresses")]
pub(crate) struct PrivateAddresses;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            // The port comes from the URL.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses = filter_allowed(found, allow_private)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

fn filter_allowed(
    found: impl Iterator<Item = SocketAddr>,
    allow_private: bool,
) -> Result<Vec<SocketAddr>, PrivateAddresses> {
    let found: Vec<_> = found.collect();
    let allowed: Vec<_> = found
        .iter()
        .copied()
        .filter(|address| allow_private || is_public(address.ip()))
        .collect();
    if allowed.is_empty() && !found.is_empty() {
        Err(PrivateAddresses)
    } else {
        Ok(allowed)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter()
            .map(|ip| SocketAddr::new(ip.parse().unwrap(), 0))
            .collect()
    }

    #[test]
    fn private_addresses_are_dropped() {
        let mixed = addresses(&[
            "127.0.0.1",
            "8.8.8.8",
            "::1",
            "::ffff:10.0.0.1",
            "2606:4700::1111",
        ]);
        let public = addresses(&["8.8.8.8", "2606:4700::1111"]);
        assert_eq!(filter_allowed(mixed.clone().into_iter(), false), Ok(public));
        assert_eq!(filter_allowed(mixed.clone().into_iter(), true), Ok(mixed));
        assert_eq!(
            filter_allowed(addresses(&["10.0.0.1", "fe80::1"]).into_iter(), false),
            Err(PrivateAddresses)
        );
        assert_eq!(filter_allowed([].into_iter(), false), Ok(vec![]));
    }

    #[tokio::test]
    async fn localhost_is_refused_at_connect_time() {
        let localhost = || "localhost".parse::<Name>().unwrap();
        let refused = Resolver { allow_private: false }.resolve(localhost()).await;
        assert!(
            refused
                .err()
                .unwrap()
                .downcast_ref::<PrivateAddresses>()
                .is_some()
        );
        let found = Resolver { allow_private: true }
            .resolve(localhost())
            .await
            .unwrap();
        assert!(found.count() > 0);
    }

    proptest! {
        #[test]
        fn no_address_that_std_calls_private_is_left(all in prop::collection::vec(any::<(bool, [u8; 4], u128)>(), 0..20)) {
            let of = |(is_v4, v4, v6): (bool, [u8; 4], u128)| {
                if is_v4 {
                    SocketAddr::new(v4.into(), 0)
                } else {
                    SocketAddr::new(v6.to_be_bytes().into(), 0)
                }
            };
            let found: Vec<_> = all.into_iter().map(of).collect();
            match filter_allowed(found.iter().copied(), false) {
                Ok(left) => {
                    prop_assert!(left.iter().all(|address| found.contains(address)));
                    let is_private = |address: &SocketAddr| match address.ip() {
                        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast(),
                        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_multicast(),
                    };
                    prop_assert!(!left.iter().any(is_private));
                }
                Err(PrivateAddresses) => prop_assert!(!found.iter().any(|address| is_public(address.ip()))),
            }
        }
    }
}
