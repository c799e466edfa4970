//! Fixtures for tests: what a test needs and how it is skipped, child processes with deadlines that never outlive their
//! test, network namespaces of its own, and root file systems that are made once and kept.
//!
//! Not for: anything that ships. Stands beside the tree and uses nothing of ours. Unlike the libraries it reads the
//! environment, prints, and panics: that is how a test fails.
//!
//! | variable | says |
//! |---|---|
//! | `HOSTEL_TEST_CACHE` | where root file systems are kept; default: `target/test-cache` |
//! | `HOSTEL_TEST_SKIP_FILE` | file that a line is appended to for each skipped test |
//! | `HOSTEL_TEST_KERNEL_DEB` | a package of Debian's cloud kernel to use instead of one from apt |

mod docker;
mod fixture;
mod need;
pub mod run;
mod space;

pub use docker::DOCKER_RULES;
pub use fixture::{busybox_tar, cache_dir, debian_tar, kernel_deb};
pub use need::{Need, require, skip};
pub use space::Space;
