//! The program `hostel-net` with a real kernel: every host, internet and VM is a network namespace of the test's own.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

mod helper;
mod life;
mod packets;
mod protocol;
mod survey;
mod user;
mod world;
