//! A recipient that can't be read does not block the other recipients of the chunk.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use herald_mesh::TopologyConfig;
use herald_model::{
    Address, Device, DeviceId, Disabled, FailingStreak, Registration, UserKey, time::Timestamp,
};
use herald_store::{Devices, Error, ErrorKind, Result};
use parking_lot::Mutex;

use crate::harness::{Herald, local, numbers, until};

#[derive(Debug, Clone, Copy)]
enum Fault {
    Panic,
    Corrupt,
    Unavailable,
}

/// Devices that fail for one user.
struct FaultyDevices {
    inner: Arc<dyn Devices>,
    fault: Mutex<Option<(Fault, UserKey)>>,
    failed: AtomicUsize,
}

#[async_trait]
impl Devices for FaultyDevices {
    async fn register(&self, user: UserKey, address: Address, now: Timestamp) -> Result<Device> {
        self.inner.register(user, address, now).await
    }

    async fn register_webhook(
        &self,
        user: UserKey,
        url: String,
        new_secret: Vec<u8>,
        now: Timestamp,
    ) -> Result<Device> {
        self.inner.register_webhook(user, url, new_secret, now).await
    }

    async fn rotate_secret(
        &self,
        user: UserKey,
        device: DeviceId,
        secret: Vec<u8>,
        previous_expires_at: Timestamp,
    ) -> Result<Option<Device>> {
        let rotated = self
            .inner
            .rotate_secret(user, device, secret, previous_expires_at);
        rotated.await
    }

    async fn enable(&self, user: UserKey, device: DeviceId) -> Result<Option<Device>> {
        self.inner.enable(user, device).await
    }

    async fn unregister(&self, user: UserKey, device: DeviceId) -> Result<bool> {
        self.inner.unregister(user, device).await
    }

    async fn erase(&self, user: UserKey) -> Result<u64> {
        self.inner.erase(user).await
    }

    async fn unregister_current(&self, registration: Registration) -> Result<bool> {
        self.inner.unregister_current(registration).await
    }

    async fn disable(&self, registration: Registration, disabled: Disabled) -> Result<bool> {
        self.inner.disable(registration, disabled).await
    }

    async fn record_failure(
        &self,
        registration: Registration,
        now: Timestamp,
    ) -> Result<Option<FailingStreak>> {
        self.inner.record_failure(registration, now).await
    }

    async fn record_success(&self, registration: Registration) -> Result<()> {
        self.inner.record_success(registration).await
    }

    async fn has_web_push(&self) -> Result<bool> {
        self.inner.has_web_push().await
    }

    async fn vapid_key(&self) -> Result<Option<Vec<u8>>> {
        self.inner.vapid_key().await
    }

    async fn set_vapid_key(&self, public_key: &[u8]) -> Result<()> {
        self.inner.set_vapid_key(public_key).await
    }

    async fn unregister_web_push(&self) -> Result<u64> {
        self.inner.unregister_web_push().await
    }

    async fn of(&self, users: &[UserKey]) -> Result<Vec<Vec<Device>>> {
        let fault = *self.fault.lock();
        let Some((fault, _)) = fault.filter(|(_, user)| users.contains(user)) else {
            return self.inner.of(users).await;
        };
        self.failed.fetch_add(1, Ordering::SeqCst);
        match fault {
            Fault::Panic => panic!("unexpected row"),
            Fault::Corrupt => Err(Error::new(ErrorKind::Corrupt, "a device is malformed")),
            Fault::Unavailable => Err(Error::new(ErrorKind::Unavailable, "store is down")),
        }
    }
}

/// Starts a service whose store fails for the second of five users, each with a webhook.
async fn start(fault: Fault) -> (Herald, Arc<FaultyDevices>, Vec<UserKey>) {
    let mut herald = Herald::prepare(local(), TopologyConfig::default()).await;
    let mut users = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        let user = herald.user(name).await;
        herald.webhook(user, name).await;
        users.push(user);
    }
    let faulty = Arc::new(FaultyDevices {
        inner: herald.stores.devices.clone(),
        fault: Mutex::new(Some((fault, users[1]))),
        failed: AtomicUsize::new(0),
    });
    herald.stores.devices = faulty.clone();
    herald.serve();
    (herald, faulty, users)
}

fn once(names: &[&str]) -> HashMap<String, usize> {
    names.iter().map(|name| ((*name).to_owned(), 1)).collect()
}

async fn check_isolation(fault: Fault, error: &str) {
    let (herald, faulty, users) = Box::pin(start(fault)).await;
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &users).await;
    assert_eq!(numbers(herald.settled(chunk).await), [4, 0, 0, 0, 1]);
    assert_eq!(herald.received(), once(&["a", "c", "d", "e"]));
    let reasons = herald.reasons().await;
    assert_eq!(reasons.len(), 1);
    let reason = format!("push failed: {error} (for 1 of 5 recipients, isolated)");
    assert!(reasons[0].contains(&reason), "{reasons:?}");
    // Three attempts at the whole chunk; the third attempt bisects it.
    assert!((5..=7).contains(&faulty.failed.load(Ordering::SeqCst)));

    // A redrive after the repair delivers to the isolated recipient.
    *faulty.fault.lock() = None;
    herald.redrive(chunk, 1).await;
    until(async || herald.counts(post).await.delivered == 5).await;
    assert_eq!(herald.received(), once(&["a", "b", "c", "d", "e"]));
}

#[tokio::test]
async fn a_recipient_that_makes_the_store_panic_is_isolated() {
    Box::pin(check_isolation(Fault::Panic, "panic: unexpected row")).await;
}

#[tokio::test]
async fn a_recipient_with_corrupt_devices_is_isolated() {
    Box::pin(check_isolation(
        Fault::Corrupt,
        "the store failed: a device is malformed",
    ))
    .await;
}

#[tokio::test]
async fn an_unavailable_store_is_retried() {
    let (herald, faulty, users) = Box::pin(start(Fault::Unavailable)).await;
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &users).await;
    until(async || faulty.failed.load(Ordering::SeqCst) >= 5).await;
    assert_eq!(numbers(herald.counts(post).await), [0, 0, 0, 5, 0]);
    *faulty.fault.lock() = None;
    assert_eq!(numbers(herald.settled(chunk).await), [5, 0, 0, 0, 0]);
    assert_eq!(herald.received(), once(&["a", "b", "c", "d", "e"]));
    assert!(herald.reasons().await.is_empty());
}
