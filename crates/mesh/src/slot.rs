//! The place of a message among those that its consumer handles concurrently.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

/// A permit of [`ConsumeOptions::in_flight_max`](crate::ConsumeOptions::in_flight_max), shared by clones.
#[derive(Debug, Clone)]
pub(crate) struct Slot(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Slot {
    pub(crate) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(Mutex::new(Some(permit))))
    }

    /// A slot without a permit, for a message that comes from no consumer.
    pub(crate) fn none() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }

    /// Releases the permit now.
    pub(crate) fn release(&self) {
        self.0.lock().take();
    }
}
