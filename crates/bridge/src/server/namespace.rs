//! Becoming two processes in a user namespace: the server, in a network namespace of its own, and the one that starts the
//! way out, in the caller's.

use hostel_sys::{
    confine::{new_network_namespace, new_user_namespace},
    process::{Fork, SingleThreaded, exit_now, fork},
    tap,
};
use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Signal, WaitOptions, getgid, getuid, waitpid},
};

use super::{
    Pasta, confine,
    fail::OrRefuse,
    network::no_tun,
    serve,
    uplink::{self, Remote},
};
use crate::protocol::{Refusal, RefusalCode};
use std::os::fd::OwnedFd;

/// Serves the client in a new user and network namespace. Returns in the process that serves; the other one ends here.
pub(super) fn enter_and_serve(
    proof: &SingleThreaded,
    socket: &mut OwnedFd,
    pasta: Pasta,
) -> Result<(), Refusal> {
    // What cannot work is told before anything is made. `pasta` itself hangs without this device.
    drop(tap::open().map_err(|error| no_tun(&error))?);
    become_root(proof)?;
    let (outside, inside) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .or_refuse("cannot make a socket")?;
    match fork(proof).or_refuse("cannot fork")? {
        Fork::Parent(child) => {
            drop(inside);
            // The client must see the end when the server ends, and this process has nothing to say to it.
            let closed = null().and_then(|null| rustix::io::dup2(&null, socket));
            if closed.is_ok() {
                uplink::serve(&outside, pasta.as_ref(), child);
            }
            // It ends when this socket does, if it has not yet; nobody else waits for it.
            drop(outside);
            let _ = waitpid(Some(child), WaitOptions::empty());
            exit_now(u8::from(closed.is_err()))
        }
        Fork::Child(proof) => {
            drop(outside);
            // Should the other process be killed: without it there is no way out, and nobody kills `pasta`.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                .or_refuse("cannot end with the other process")?;
            new_network_namespace(&proof).map_err(|error| unsupported("network", &error))?;
            loopback_up()?;
            confine::keep_needed()?;
            serve::namespace(socket, Remote::new(inside, pasta.is_some()))
        }
    }
}

/// Moves the process into a user namespace in which the caller is root.
fn become_root(proof: &SingleThreaded) -> Result<(), Refusal> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    new_user_namespace(proof).map_err(|error| unsupported("user", &error))?;
    for (file, text) in [
        // Without this the kernel lets no ordinary user map a group.
        ("setgroups", "deny".to_owned()),
        ("gid_map", format!("0 {gid} 1")),
        ("uid_map", format!("0 {uid} 1")),
    ] {
        fs_err::write(format!("/proc/self/{file}"), text)
            .map_err(|error| unsupported("user", &error))?;
    }
    Ok(())
}

fn loopback_up() -> Result<(), Refusal> {
    let what = "cannot set the namespace's loopback up";
    let routing = hostel_netlink::Routing::connect().or_refuse(what)?;
    match routing.link("lo").or_refuse(what)? {
        Some(lo) => routing.set_link(lo.index, true).or_refuse(what),
        None => Ok(()),
    }
}

/// Opens `/dev/null`.
pub(super) fn null() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, Mode::empty())
}

fn unsupported(kind: &str, error: &std::io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::Unsupported,
        format!("cannot make a {kind} namespace here: {error}"),
    )
}
