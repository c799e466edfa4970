//! The resolver against files that change, resolvers on loopback that misbehave, and askers at the gateway.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests panic as the tests themselves do"
)]

mod common;
mod files;
mod forward;
mod gateway;
mod libc;
