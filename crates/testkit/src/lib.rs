//! Fixtures for tests: what a test needs and how it is skipped, deadlines, child processes that never outlive their test,
//! a home of Hostel's own for a test, and root file systems that are made once and kept.
//!
//! Not for: anything that ships. Stands beside the tree and uses nothing of ours. Unlike the libraries it reads the
//! environment, prints, and panics: that is how a test fails.
//!
//! | variable | says |
//! |---|---|
//! | `HOSTEL_TEST_BIN_DIR` | where `hostel`, `hosteld` and `hostel-init` are; default: beside the test's own program |
//! | `HOSTEL_TEST_CACHE` | where root file systems are kept; default: `target/test-cache` |
//! | `HOSTEL_TEST_SKIP_FILE` | file that a line is appended to for each skipped test |
//! | `HOSTEL_TEST_KERNEL_DEB` | a package of Debian's cloud kernel to use instead of one from apt |

mod deadline;
mod fixture;
mod home;
mod need;
mod process;

pub use deadline::Deadline;
pub use fixture::{busybox_tar, cache_dir, cached, debian_tar, kernel_deb};
pub use home::{Home, bin, bin_dir};
pub use need::{Need, require, skip};
pub use process::{Guarded, Ran, run};
