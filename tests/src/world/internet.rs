//! The made-up internet: a process in a network namespace of its own that answers HTTP, echo and DNS.

use std::{
    io::Read,
    net::{IpAddr, TcpStream},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{INTERNET, INTERNET_V6, dns, servers};
use crate::run::until;

/// The first argument that makes a test program the internet.
pub const ROLE: &str = "__internet";

static PID: OnceLock<u32> = OnceLock::new();

/// Starts the internet in a network namespace of its own; it ends when this process does. Returns its pid.
pub(super) fn start() -> Result<u32> {
    // Its standard input is a pipe that this process never writes to: end of file is the sign to leave.
    let child = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe()?)
        .arg(ROLE)
        .stdin(Stdio::piped())
        .spawn()
        .context("unshare --net")?;
    let pid = child.id();
    let own = fs_err::read_link("/proc/self/ns/net")?;
    until(
        "the internet has a namespace of its own",
        Duration::from_secs(10),
        || {
            fs_err::read_link(format!("/proc/{pid}/ns/net"))
                .ok()
                .filter(|ns| *ns != own)
        },
    )?;
    std::mem::forget(child);
    let _ = PID.set(pid);
    Ok(pid)
}

/// Prepares a program that runs in the internet's network namespace, as a machine of somebody else.
pub fn command(program: &str) -> Command {
    let mut command = Command::new("nsenter");
    let pid = PID.get().expect("the world was entered");
    command.args(["-t", &pid.to_string(), "-n", program]);
    command
}

/// Waits until the servers answer.
pub(super) fn wait_ready() -> Result<()> {
    for address in [INTERNET, INTERNET_V6] {
        until("the internet answers", Duration::from_secs(10), || {
            TcpStream::connect((address, servers::HTTP)).ok()
        })?;
    }
    Ok(())
}

/// Is the internet, until standard input ends.
pub fn serve() -> Result<()> {
    for address in [INTERNET, INTERNET_V6] {
        let address: IpAddr = address.parse()?;
        // The address is given to the namespace after this process is there.
        until("the address comes", Duration::from_secs(10), || {
            std::net::UdpSocket::bind((address, 0)).ok()
        })?;
        servers::start(address)?;
        dns::start(address)?;
    }
    let _ = std::io::stdin().read(&mut [0; 1]);
    Ok(())
}
