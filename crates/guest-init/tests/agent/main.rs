//! The agent without a VM: the test is the daemon, over unix sockets, and commands run in this machine's own namespaces.
//! What is about the network happens in namespaces that the test makes.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and shows what commands said"
)]

mod connect;
mod dns;
mod host;
mod ports;
mod sessions;
