//! The program `hostel` against a daemon made of a few lines, over real sockets, pipes and terminals.
#![expect(
    clippy::unwrap_used,
    clippy::large_stack_arrays,
    reason = "a test that meets the unexpected shall panic"
)]

mod help;
mod network;
mod sessions;
mod starting;
mod support;
mod verbs;
