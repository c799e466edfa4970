//! End-to-end tests with real VMs, real distributions and real packets.
//!
//! Everything happens in a world of its own (`hostel_tests::world`): a network namespace with a made-up internet. The
//! tests of `spine`, `sessions`, `users` and `network` share one VM; those of `bad_days`, `archives` and `lifecycle`
//! each have a home of their own.

#![expect(
    clippy::unwrap_used,
    reason = "a test program with a `main` of its own, which clippy does not take for one"
)]

mod archives;
mod bad_days;
mod lifecycle;
mod net;
mod network;
mod sessions;
mod shared;
mod spine;
mod users;

use std::{process::ExitCode, sync::RwLock};

use hostel_testkit::Need;
use hostel_tests::world;
use libtest_mimic::{Arguments, Trial};

/// Held for reading by every test, and for writing by one that changes the world for all.
static WORLD: RwLock<()> = RwLock::new(());

fn main() -> anyhow::Result<ExitCode> {
    if std::env::args().nth(1).as_deref() == Some(world::internet::ROLE) {
        world::internet::serve()?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut arguments = Arguments::from_args();
    let mut trials: Vec<Trial> = Vec::new();
    let modules = [
        ("spine", spine::TESTS),
        ("sessions", sessions::TESTS),
        ("users", users::TESTS),
        ("network", network::TESTS),
        ("lifecycle", lifecycle::TESTS),
        ("archives", archives::TESTS),
        ("bad_days", bad_days::TESTS),
    ];
    for (module, tests) in modules.iter().chain(net::TESTS) {
        for (name, test) in *tests {
            trials.push(Trial::test(format!("{module}::{name}"), move || {
                let _with_others = WORLD.read();
                test();
                Ok(())
            }));
        }
    }
    for (module, tests) in net::ALONE {
        for (name, test) in *tests {
            trials.push(Trial::test(format!("{module}::{name}"), move || {
                let _alone = WORLD.write();
                test();
                Ok(())
            }));
        }
    }
    if !arguments.list {
        for need in [
            Need::Root,
            Need::Program("qemu-system-x86_64"),
            Need::Program("mmdebstrap"),
        ] {
            if hostel_testkit::require("e2e", need).is_none() {
                return Ok(ExitCode::SUCCESS);
            }
        }
        // What comes from the real network is fetched before the door closes.
        shared::prepare()?;
        world::enter()?;
    }
    // A VM under TCG fills a core; more at a time only makes each one late.
    arguments.test_threads.get_or_insert(2);
    let conclusion = libtest_mimic::run(&arguments, trials);
    shared::close();
    Ok(conclusion.exit_code())
}
