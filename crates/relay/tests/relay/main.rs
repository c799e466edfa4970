//! The relay in real networks: each test has a namespace of its own, with every port free.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "this is how a test fails, and how its processes talk"
)]

mod addresses;
mod crowd;
mod datagrams;
mod policy;
mod stream;
mod support;
mod taken;
