//! What each kind of address needs: a request, and its own reading of the answer.

use async_trait::async_trait;
use herald_model::{Device, UserId, time::Timestamp};
use url::Url;

use super::{
    Push,
    client::{Answer, Request},
};
use crate::domain::{self, Provider, Reason, Verdict};

/// One push to one device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    /// What to tell.
    pub(crate) push: &'a Push,
    /// For whom.
    pub(crate) recipient: &'a UserId,
    /// On which device.
    pub(crate) device: &'a Device,
    /// The device's URL.
    pub(crate) url: &'a Url,
    /// The moment of sending.
    pub(crate) now: Timestamp,
}

/// Knows how one kind of provider is spoken to.
#[async_trait]
pub(crate) trait Sender: Send + Sync {
    /// Which it is.
    fn provider(&self) -> Provider;

    /// The request that carries a message. The error is final: no retry makes the device any better.
    async fn request(&self, message: Message<'_>) -> Result<Request, Reason>;

    /// What the provider's answer means.
    fn verdict(&self, answer: Answer) -> Verdict {
        domain::verdict(answer.status, answer.retry_after)
    }
}
