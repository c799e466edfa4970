//! The relay in real networks: each test has a namespace of its own, with every port free.

mod addresses;
mod crowd;
mod datagrams;
mod policy;
mod stream;
mod support;
mod taken;
