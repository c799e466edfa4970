//! The program `hostel-net` with a real kernel: every host, internet and VM is a network namespace of the test's own.

mod helper;
mod life;
mod packets;
mod protocol;
mod user;
mod world;
