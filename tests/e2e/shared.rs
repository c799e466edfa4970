//! The one VM that most tests share.

use std::{
    path::PathBuf,
    sync::{Mutex, OnceLock},
};

use anyhow::Result;
use hostel_tests::{home::Home, world};

/// Debian 12, with procps and iproute2.
pub(crate) const DEBIAN_12: &str = "debian12";
/// Debian 13, with procps and iproute2.
pub(crate) const DEBIAN_13: &str = "Debian-13";
/// A root file system of BusyBox, small and quick.
pub(crate) const SMALL: &str = "small";

static HOME: OnceLock<Home> = OnceLock::new();
static MAKING: Mutex<()> = Mutex::new(());

/// Makes the fixtures that need the real network, once for all runs.
pub(crate) fn prepare() -> Result<()> {
    debian("bookworm");
    debian("trixie");
    small();
    world::kernel_store()?;
    Ok(())
}

/// Returns the archive of a Debian release.
pub(crate) fn debian(suite: &str) -> PathBuf {
    hostel_testkit::debian_tar(suite).expect("mmdebstrap makes Debian")
}

/// Returns the archive of the small distribution.
pub(crate) fn small() -> PathBuf {
    hostel_testkit::busybox_tar().expect("busybox-static is installed")
}

/// Returns the home in which the three distributions live; the first caller makes it.
pub(crate) fn home() -> &'static Home {
    let _one = MAKING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    HOME.get_or_init(|| {
        let home = Home::with_kernel().expect("a home");
        home.import(DEBIAN_12, &debian("bookworm"));
        home.import(DEBIAN_13, &debian("trixie"));
        home.import(SMALL, &small());
        // Explicitly started distributions stay until they are stopped.
        for name in [DEBIAN_12, DEBIAN_13, SMALL] {
            home.run(&["start", name]).ok();
        }
        home
    })
}

/// Ends the shared VM; fails when a process of it stays.
pub(crate) fn close() {
    if let Some(home) = HOME.get() {
        home.run(&["shutdown"]).ok();
        home.remove().expect("nothing is left of the shared home");
    }
}
