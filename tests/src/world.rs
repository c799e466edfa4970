//! The world of the tests: a network namespace with an "internet" of its own, the built programs, and cached fixtures.

use std::{
    ffi::OsStr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::run::host;

/// Set in the environment of the process that already lives in the world.
const INSIDE: &str = "HOSTEL_TEST_WORLD";

/// The address of the made-up internet.
pub const INTERNET: &str = "203.0.113.10";

/// Its IPv6 address.
pub const INTERNET_V6: &str = "2001:db8:2::10";

/// The address of the host's uplink in the made-up world.
pub const UPLINK: &str = "203.0.113.1";

/// Its IPv6 address.
pub const UPLINK_V6: &str = "2001:db8:2::1";

/// The name that the made-up internet's DNS server knows.
pub const INTERNET_NAME: &str = "www.example.test";

/// Returns a built program. `cargo xtask test` builds them all and names their directory.
pub fn program(name: &str) -> PathBuf {
    let dir = std::env::var_os("HOSTEL_TEST_BIN_DIR").map_or_else(
        || {
            // target/<profile>/deps/e2e-… → target/<profile>
            let exe = std::env::current_exe().expect("the test has a path");
            exe.ancestors()
                .nth(2)
                .expect("in target/<profile>/deps")
                .to_owned()
        },
        PathBuf::from,
    );
    dir.join(name)
}

/// Returns the directory for fixtures that are made once and kept between runs.
pub fn cache() -> Result<PathBuf> {
    hostel_testkit::cache_dir()
}

/// Returns a kernel store with Debian's cloud kernel, fetched once.
pub fn kernel_store() -> Result<PathBuf> {
    let dir = cache()?.join("kernel-home");
    if !dir.join("kernels").is_dir() {
        let made = tempfile::tempdir_in(cache()?)?;
        let runtime = tempfile::Builder::new().prefix("ht").tempdir_in("/tmp")?;
        let output = crate::run::Running::start(
            Command::new(program("hostel"))
                .args(["kernel", "install"])
                .env("HOSTEL_HOME", made.path().join("h"))
                .env("HOSTEL_RUNTIME_DIR", runtime.path().join("r")),
            None,
        )?
        .wait(crate::run::DEADLINE)?;
        if !output.status.success() {
            bail!("the kernel cannot be installed: {}", output.stderr);
        }
        fs_err::create_dir_all(&dir)?;
        fs_err::rename(made.path().join("h/kernels"), dir.join("kernels"))?;
    }
    Ok(dir.join("kernels"))
}

/// Moves this process into a world of its own: a network namespace with loopback and a veth to an "internet"
/// namespace, and a mount namespace with its own /etc/resolv.conf.
///
/// Needs root. Fixtures that come from the real network must have been made before.
pub fn enter() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return build();
    }
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(error).context("unshare")
}

/// Builds the network of the world, inside it.
fn build() -> Result<()> {
    ip(&["link", "set", "lo", "up"])?;
    // The internet is a network namespace that lives as long as the process that holds it.
    ip(&["link", "add", "up0", "type", "veth", "peer", "name", "net0"])?;
    let internet = crate::world::internet::start()?;
    ip(&["link", "set", "net0", "netns", &internet.to_string()])?;
    ip(&["addr", "add", &format!("{UPLINK}/24"), "dev", "up0"])?;
    // Without duplicate address detection the address can be used at once.
    ip(&[
        "addr",
        "add",
        &format!("{UPLINK_V6}/64"),
        "dev",
        "up0",
        "nodad",
    ])?;
    ip(&["link", "set", "up0", "up"])?;
    let pid = internet.to_string();
    for args in [
        &["link", "set", "lo", "up"][..],
        &["addr", "add", "203.0.113.10/24", "dev", "net0"],
        &["addr", "add", "2001:db8:2::10/64", "dev", "net0", "nodad"],
        &["link", "set", "net0", "up"],
        // A neighbour who knows that our guests are behind us, and tries.
        &["route", "add", "172.16.0.0/12", "via", UPLINK],
    ] {
        let mut all = vec!["-t", &pid, "-n", "ip"];
        all.extend_from_slice(args);
        host("nsenter", &all)?.ok();
    }
    ip(&["route", "add", "default", "via", INTERNET])?;
    ip(&["-6", "route", "add", "default", "via", INTERNET_V6])?;
    let conf = tempfile::NamedTempFile::new()?;
    fs_err::write(conf.path(), format!("nameserver {INTERNET}\n"))?;
    host(
        "mount",
        &[
            OsStr::new("--bind"),
            conf.path().as_os_str(),
            Path::new("/etc/resolv.conf").as_os_str(),
        ],
    )?
    .ok();
    usable_tun()?;
    internet::wait_ready()
}

/// Gives this world a `/dev/net/tun` that everyone may open, as udev makes it on ordinary systems.
fn usable_tun() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let node = dir.path().join("tun");
    let path = node.as_os_str();
    let number = ["c", "10", "200"].map(OsStr::new);
    host(
        "mknod",
        &[&[OsStr::new("-m"), OsStr::new("666"), path][..], &number].concat(),
    )?
    .ok();
    host(
        "mount",
        &[OsStr::new("--bind"), path, OsStr::new("/dev/net/tun")],
    )?
    .ok();
    Ok(())
}

/// Runs `ip` with arguments.
fn ip(args: &[&str]) -> Result<()> {
    host("ip", args)?.ok();
    Ok(())
}

pub mod dns;
pub mod internet;
pub mod servers;
