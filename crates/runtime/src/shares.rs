//! Shares of a bounded capacity, so that one caller never takes all of it.
//!
//! What a caller may hold depends on what is free: an address may hold as much as is left for others, and a connection
//! half as much. So a greedy address gets at most a half of the capacity, a greedy connection a third, and there is
//! always room for a caller who has nothing yet. A caller alone on a server is not slowed down by a fixed quota, and no
//! quota has to be configured. (Choudhury and Hahne describe the rule as dynamic thresholds of a shared buffer.)

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Who takes a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The connection; `None` for a connection itself.
    pub connection: Option<u64>,
    /// The address, as [`Caller::address_key`] returns it. `None` if it isn't known.
    pub address: Option<IpAddr>,
}

impl Caller {
    /// The address that counts: of IPv6 the network, as a host has all addresses of a /64.
    pub fn address_key(address: IpAddr) -> IpAddr {
        match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            address @ IpAddr::V4(_) => address,
        }
    }
}

/// A capacity that callers share. Clones share it.
#[derive(Clone)]
pub struct Shares(Arc<Inner>);

struct Inner {
    max: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    connections: HashMap<u64, usize>,
    addresses: HashMap<IpAddr, usize>,
}

impl fmt::Debug for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shares")
            .field("max", &self.0.max)
            .field("held", &self.held())
            .finish()
    }
}

impl Shares {
    /// A capacity of `max`.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Inner {
            max,
            held: Mutex::default(),
        }))
    }

    /// What all callers hold.
    pub fn held(&self) -> usize {
        self.0.held.lock().all
    }

    /// Takes a share; `None` if the caller would hold more than is left for others.
    pub fn try_acquire(&self, caller: Caller, amount: usize) -> Option<Share> {
        let held = &mut *self.0.held.lock();
        let free = self.0.max.saturating_sub(held.all);
        if amount > free {
            return None;
        }
        // What is free includes this share. Rounded up, so that the last unit can be taken.
        let of_connection = caller
            .connection
            .map_or(0, |key| held.connections.get(&key).copied().unwrap_or(0));
        let of_address = caller
            .address
            .map_or(0, |key| held.addresses.get(&key).copied().unwrap_or(0));
        if of_connection + amount > free.div_ceil(2) || of_address + amount > free {
            return None;
        }
        held.add(caller, amount);
        Some(Share {
            shares: self.clone(),
            caller,
            amount,
        })
    }
}

impl Held {
    fn add(&mut self, caller: Caller, amount: usize) {
        self.all += amount;
        if let Some(key) = caller.connection {
            *self.connections.entry(key).or_default() += amount;
        }
        if let Some(key) = caller.address {
            *self.addresses.entry(key).or_default() += amount;
        }
    }

    fn remove(&mut self, caller: Caller, amount: usize) {
        fn remove<K: std::hash::Hash + Eq>(map: &mut HashMap<K, usize>, key: K, amount: usize) {
            if let std::collections::hash_map::Entry::Occupied(mut entry) = map.entry(key) {
                *entry.get_mut() -= amount.min(*entry.get());
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
        self.all -= amount;
        if let Some(key) = caller.connection {
            remove(&mut self.connections, key, amount);
        }
        if let Some(key) = caller.address {
            remove(&mut self.addresses, key, amount);
        }
    }
}

/// A part of the capacity, which is free again when this is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Shares,
    caller: Caller,
    amount: usize,
}

impl Share {
    /// How much it is.
    pub fn amount(&self) -> usize {
        self.amount
    }

    /// Takes more for the same caller. Returns whether there was enough; if not, the share stays as it was.
    pub fn grow(&mut self, amount: usize) -> bool {
        if amount == 0 {
            return true;
        }
        let Some(mut more) = self.shares.try_acquire(self.caller, amount) else {
            return false;
        };
        // The amount is this share's from now on.
        self.amount += std::mem::take(&mut more.amount);
        true
    }

    /// Gives a part of it back, at most all.
    pub fn shrink(&mut self, amount: usize) {
        let amount = amount.min(self.amount);
        self.amount -= amount;
        self.shares.0.held.lock().remove(self.caller, amount);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount > 0 {
            self.shares.0.held.lock().remove(self.caller, self.amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(connection: u64, address: u8) -> Caller {
        Caller {
            connection: Some(connection),
            address: Some(IpAddr::from([10, 0, 0, address])),
        }
    }

    /// Takes single units until there are no more.
    fn take_all(shares: &Shares, caller: Caller) -> Vec<Share> {
        std::iter::from_fn(|| shares.try_acquire(caller, 1)).collect()
    }

    #[test]
    fn a_greedy_connection_leaves_room_for_others() {
        let shares = Shares::new(300);
        let greedy = take_all(&shares, caller(1, 1));
        assert!((99..=101).contains(&greedy.len()), "{}", greedy.len());
        // Another connection of the same address, which is a proxy, and another address.
        let behind_proxy = shares.try_acquire(caller(2, 1), 1);
        let other = shares.try_acquire(caller(3, 2), 1);
        assert!(behind_proxy.is_some() && other.is_some());
        drop((greedy, behind_proxy, other));
        assert_eq!(shares.held(), 0);
        assert!(shares.0.held.lock().connections.is_empty());
        assert!(shares.0.held.lock().addresses.is_empty());
    }

    #[test]
    fn a_greedy_address_leaves_a_half() {
        let shares = Shares::new(300);
        let greedy: Vec<_> = (0..100)
            .flat_map(|connection| take_all(&shares, caller(connection, 1)))
            .collect();
        assert_eq!(greedy.len(), 150);
        assert!(shares.try_acquire(caller(200, 2), 1).is_some());
    }

    #[test]
    fn the_only_unit_can_be_taken() {
        let shares = Shares::new(1);
        let one = shares.try_acquire(caller(1, 1), 1);
        assert!(one.is_some());
        assert!(shares.try_acquire(caller(2, 2), 1).is_none());
        drop(one);
        assert!(shares.try_acquire(caller(2, 2), 1).is_some());
    }

    #[test]
    fn a_share_grows_within_the_same_limits() {
        let shares = Shares::new(90);
        let mut share = shares.try_acquire(caller(1, 1), 20).unwrap();
        assert!(share.grow(10));
        assert!(!share.grow(60));
        assert_eq!(shares.held(), 30);
        // Also while there is nothing left.
        let _other = shares.try_acquire(caller(2, 2), 30);
        let _third = shares.try_acquire(caller(3, 3), 15);
        share.shrink(10);
        assert_eq!(shares.held(), 65);
        drop(share);
        assert_eq!(shares.held(), 45);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_caller() {
        let key = |text: &str| Caller::address_key(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::2:3"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
    }
}
