//! The engine against a VM that is not there: an agent and a network in this process.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod fake;
mod network;
mod sessions;
