//! The port for push providers: one implementation for each kind of address.

use async_trait::async_trait;
use herald_model::{Device, UserId, time::Timestamp};
use url::Url;

use super::{
    Push,
    client::{ProviderResponse, Request},
};
use crate::domain::{self, Provider, Reason, Verdict};

/// One push to one device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    /// The post to send.
    pub(crate) push: &'a Push,
    /// The recipient.
    pub(crate) recipient: &'a UserId,
    /// The target device.
    pub(crate) device: &'a Device,
    /// The device's URL.
    pub(crate) url: &'a Url,
    /// The current time.
    pub(crate) now: Timestamp,
}

/// Builds the requests to one kind of provider and interprets its responses.
#[async_trait]
pub(crate) trait Sender: Send + Sync {
    /// The kind of provider.
    fn provider(&self) -> Provider;

    /// Builds the request for a message. The error is permanent: the keys of the device are invalid.
    async fn request(&self, message: Message<'_>) -> Result<Request, Reason>;

    /// The verdict of a response.
    fn verdict(&self, response: ProviderResponse) -> Verdict {
        domain::verdict(self.provider(), response.status, response.retry_after)
    }
}
