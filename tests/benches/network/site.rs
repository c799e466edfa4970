//! A home whose machine has the other end running in it.

use std::{fs, net::IpAddr, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, Result};
use hostel_tests::{
    bench::peer::{self, Kit, PLACE},
    home::Home,
    run::{Running, host},
};

/// The distribution.
pub(crate) const DISTRO: &str = "a";
/// The first port of its server on all addresses.
pub(crate) const ALL: u16 = 7000;

/// A home with one backend, one distribution and a server in it.
pub(crate) struct Site {
    // Ends before the home, which waits until no process is left.
    _server: Running,
    pub(crate) home: Home,
    /// The machine's address.
    pub(crate) address: IpAddr,
    /// By which programs a process gets to where the gateway is.
    pub(crate) gateway: Vec<String>,
}

impl Site {
    /// Makes it.
    pub(crate) fn new(backend: &str, kit: &Kit) -> Result<Self> {
        let mut home = Home::with_kernel()?;
        home.configure("hostel", &format!("network={backend}"));
        if backend != "root" {
            // Without this an ordinary user's backend cannot send pings; most systems allow it.
            host("sysctl", &["-qw", "net.ipv4.ping_group_range=0 2147483647"])?.ok();
            home = home.owned_by_a_user()?;
        }
        home.import(DISTRO, &hostel_testkit::busybox_tar()?);
        let unpack = format!("mkdir -p {PLACE} && tar -x -C {PLACE}");
        home.run_with(&["-d", DISTRO, "--", &unpack], kit.tar()?)
            .ok();
        let server = play(&home, &format!("serve 0.0.0.0 {ALL}"));
        let net = home.json(&["net", "show"]);
        let seen = &net["status"];
        anyhow::ensure!(seen["backend"] == backend, "the backend is {seen}");
        let address = seen["address"].as_str().context("an address")?.parse()?;
        let gateway = if backend == "root" {
            Vec::new()
        } else {
            let pid = elsewhere(&home).context("hostel-net has a namespace of its own")?;
            ["nsenter", "-t", &pid.to_string(), "-n"]
                .map(String::from)
                .into()
        };
        peer::wait_for(&gateway, address, ALL)?;
        Ok(Self {
            home,
            address,
            gateway,
            _server: server,
        })
    }

    /// Plays a role from where the gateway is, towards the server on all addresses; returns the figure.
    pub(crate) fn measure(&self, verb: &str, seconds: f64) -> Result<f64> {
        let role = format!("{verb} {} {ALL} {seconds}", self.address);
        Ok(peer::ask(&self.gateway, &role)?.parse()?)
    }

    /// Tells the server something.
    pub(crate) fn tell(&self, order: &str) -> Result<String> {
        peer::ask(
            &self.gateway,
            &format!("tell {} {ALL} {order}", self.address),
        )
    }

    /// Starts one more role in the distribution.
    pub(crate) fn play(&self, role: &str) -> Running {
        play(&self.home, role)
    }
}

fn play(home: &Home, role: &str) -> Running {
    home.start(&["-d", DISTRO, "--", &format!("exec {}", Kit::line(role))])
}

/// Returns a process of `hostel-net` that is not in our network namespace.
fn elsewhere(home: &Home) -> Option<u32> {
    let inode = |pid: &str| Some(fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino());
    let own = inode("self");
    home.pids_of("hostel-net")
        .into_iter()
        .find(|pid| inode(&pid.to_string()).is_some_and(|i| Some(i) != own))
}
