//! The kernel's own answer to what this crate sends: real namespaces, real packets, and the tools that people use to look.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not take for tests"
)]

mod filter;
mod links;
mod listing;
