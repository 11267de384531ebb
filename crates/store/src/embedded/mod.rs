//! The embedded engine: fjall, for one machine.
