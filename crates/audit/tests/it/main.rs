//! Audits of a real broker and a real store. Each kind of finding is made on purpose and must be found, named, and nothing
//! else: an auditor that finds nothing proves nothing unless it can find something.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod findings;
mod harness;
mod repairs;
