//! The promises about the network, measured in one run: `cargo xtask bench` adds their rows to `docs/benchmarks.md`.
//!
//! Everything happens in a world of its own (`hostel_tests::world`): host, internet and machines live in network namespaces
//! that this program makes. Things that are compared are measured in turn with the same two programs at the ends
//! (`hostel_tests::bench::peer`). Nothing here passes or fails a test.

mod hand;
mod house;
mod listeners;
mod relay;
mod site;
mod throughput;

use anyhow::Result;
use hostel_testkit::Need;
use hostel_tests::{
    bench::{Row, hand_in, peer},
    world,
};

use crate::site::Site;

fn main() -> Result<()> {
    let first = std::env::args().nth(1);
    if first.as_deref() == Some(world::internet::ROLE) {
        return world::internet::serve();
    }
    if peer::play()? || std::env::args().any(|a| a == "--test" || a == "--list") {
        return Ok(());
    }
    for need in [
        Need::Root,
        Need::Program("qemu-system-x86_64"),
        Need::Program("pasta"),
    ] {
        if hostel_testkit::require("bench network", need).is_none() {
            return Ok(());
        }
    }
    hostel_testkit::busybox_tar()?;
    world::kernel_store()?;
    world::enter()?;

    let kit = peer::Kit::new()?;
    {
        let root = Site::new("root", &kit)?;
        told(&throughput::beside_one_by_hand(&root, &kit)?)?;
        told(&relay::into_the_machine(&root)?)?;
        told(&listeners::seen_and_gone(&root)?)?;
        told(&throughput::rootless_beside_root(
            &root,
            &Site::new("rootless", &kit)?,
        )?)?;
        root.home.run(&["shutdown"]).ok();
    }
    told(&house::full()?)
}

/// Hands in what is known so far, so that a later trouble does not take it along.
fn told(rows: &[Row]) -> Result<()> {
    hand_in("", rows)
}
