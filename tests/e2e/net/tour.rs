//! `scripts/tour` shows what its page says.

use std::process::Command;

use hostel_tests::{
    run::{DEADLINE, Running},
    world,
};

use super::Tests;

pub(crate) const TESTS: Tests = &[(
    "the_page_is_what_the_tour_shows",
    the_page_is_what_the_tour_shows,
)];

/// In a network namespace of its own, where nobody else has the first choice of addresses.
fn the_page_is_what_the_tour_shows() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/tour");
    let mut command = Command::new("unshare");
    command
        .args([
            "--net",
            "sh",
            "-c",
            "ip link set lo up && exec \"$@\"",
            "sh",
            script,
        ])
        .arg("--programs")
        .arg(world::program("hostel").parent().expect("in a directory"))
        .arg("--cache")
        .arg(world::cache().unwrap())
        .arg("--check");
    let tour = Running::start(&mut command, None)
        .and_then(|running| running.wait(2 * DEADLINE))
        .unwrap();
    tour.ok();
}
