//! The promises about the network, measured in one run: `cargo xtask bench` adds their rows to `docs/benchmarks.md`.
//!
//! Everything happens in a world of its own (`hostel_tests::world`): host, internet and machines live in network namespaces
//! that this program makes. Things that are compared are measured in turn with the same two programs at the ends
//! (`hostel_tests::bench::peer`). Nothing here passes or fails a test. Words after `--` choose parts: `hand`, `relay`,
//! `listeners`, `rootless`, `house`.

mod hand;
mod house;
mod listeners;
mod relay;
mod site;
mod throughput;

use std::cell::LazyCell;

use anyhow::{Result, anyhow};
use hostel_testkit::Need;
use hostel_tests::{
    bench::{hand_in, peer},
    world,
};

use crate::site::Site;

fn main() -> Result<()> {
    let first = std::env::args().nth(1);
    if first.as_deref() == Some(world::internet::ROLE) {
        return world::internet::serve();
    }
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
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
    let wanted = |part| words.is_empty() || words.iter().any(|word| word == part);
    let root = LazyCell::new(|| Site::new("root", &kit));
    let root = || {
        let site = root.as_ref();
        site.map_err(|error| anyhow!("{error:#}"))
    };
    if wanted("hand") {
        hand_in("", &throughput::beside_one_by_hand(root()?, &kit)?)?;
    }
    if wanted("relay") {
        hand_in("", &relay::into_the_machine(root()?)?)?;
    }
    if wanted("listeners") {
        hand_in("", &listeners::seen_and_gone(root()?)?)?;
    }
    if wanted("rootless") {
        let rootless = Site::new("rootless", &kit)?;
        hand_in("", &throughput::rootless_beside_root(root()?, &rootless)?)?;
    }
    if wanted("house") {
        hand_in("", &house::full()?)?;
    }
    Ok(())
}
