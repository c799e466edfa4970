//! Building the programs, among them the one that runs in the guest.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{
    elf::{self, Kind},
    run::{cargo, step, target_dir},
};

/// The largest `/init`, in bytes (a promise of the design).
const LARGEST_INIT: u64 = 3_000_000;
/// How long one build may take; the first compiles all dependencies.
pub(crate) const BUILD_LIMIT: Duration = Duration::from_secs(45 * 60);

/// How the host's programs are built. The guest's are always built for size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

impl Profile {
    fn dir(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

/// Builds `hostel`, `hosteld`, `hostel-net` and `hostel-init` into one directory, which is returned.
pub(crate) fn build(profile: Profile) -> Result<PathBuf> {
    let mut host = cargo(&[
        "build",
        "--package",
        "hostel-cli",
        "--package",
        "hostel-daemon",
        "--package",
        "hostel-bridge",
    ]);
    if profile == Profile::Release {
        host.arg("--release");
    }
    step(
        "build hostel, hosteld and hostel-net",
        &mut host,
        BUILD_LIMIT,
    )?;

    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    // With a target, also when it is the host's: without, the flags would apply to procedural macros, which cannot be
    // static.
    // At a fixed address: each of its processes is spared the relocations. Under TCG a second distribution starts faster so
    // (docs/benchmarks.md).
    let flags = format!(
        r#"target.{target}.rustflags=["-C","target-feature=+crt-static","-C","relocation-model=static"]"#
    );
    let mut guest = cargo(&[
        "build",
        "--package",
        "hostel-guest-init",
        "--profile",
        "guest",
    ]);
    guest.args(["--target", &target, "--config", &flags]);
    // These would replace the flags.
    guest
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    step("build the guest's /init", &mut guest, BUILD_LIMIT)?;

    let products = target_dir()?;
    let init = products.join(&target).join("guest/init");
    check_init(&init)?;
    let dir = products.join(profile.dir());
    let mut copy = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempfile_in(&dir)?;
    std::io::copy(&mut fs_err::File::open(&init)?, &mut copy)?;
    let to = dir.join("hostel-init");
    copy.persist(&to)
        .with_context(|| format!("cannot write {}", to.display()))?;
    eprintln!(
        "── built: {0}/hostel, {0}/hosteld, {0}/hostel-net, {0}/hostel-init",
        dir.display()
    );
    Ok(dir)
}

fn check_init(init: &std::path::Path) -> Result<()> {
    let bytes = fs_err::read(init)?;
    let kind = elf::kind(&bytes);
    if kind != Kind::Static {
        bail!(
            "{} must be static and at a fixed address, but is {kind:?}",
            init.display()
        );
    }
    let size = bytes.len() as u64;
    if size > LARGEST_INIT {
        bail!(
            "{} has {size} bytes, {LARGEST_INIT} are allowed",
            init.display()
        );
    }
    eprintln!(
        "── the guest's /init: {:.2} MB of {:.0}, static",
        size as f64 / 1e6,
        LARGEST_INIT as f64 / 1e6
    );
    Ok(())
}
