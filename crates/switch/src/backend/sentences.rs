//! What is and is not reachable, in words that every backend uses.

use std::net::Ipv4Addr;

/// The way out through sockets of the user's.
pub(super) fn outward(program: &str) -> String {
    format!(
        "The VM reaches the internet through {program}: TCP, UDP, and ping where the host's `net.ipv4.ping_group_range` has your group."
    )
}

/// The host, where the gateway is one of its own addresses.
pub(super) fn host_at_gateway(gateway: Ipv4Addr) -> String {
    format!("The VM reaches the host at {gateway}.")
}

/// The host, where the gateway is not one of its own addresses.
pub(super) fn host(address: Option<Ipv4Addr>) -> String {
    match address {
        Some(address) => format!(
            "The VM reaches the host at the host's own address, now {address}, and not at the gateway's."
        ),
        None => "The host has no address of its own now at which the VM could reach it.".to_owned(),
    }
}

/// The way in, where the host's other programs have no route.
pub(super) fn inward(guest: Ipv4Addr) -> [String; 3] {
    [
        format!(
            "Other programs of the host have no route to {guest}: they use the ports on 127.0.0.1 and ::1."
        ),
        "A distribution with an address of its own is reached at that address with its first number replaced by 127.".to_owned(),
        "Other machines do not reach the VM.".to_owned(),
    ]
}

/// The host's loopback: open at the gateway's address, or closed.
pub(super) fn loopback(gateway: Option<Ipv4Addr>) -> String {
    match gateway {
        Some(gateway) => format!(
            "Services that listen on the host's 127.0.0.1 only are open to the VM at {gateway}, because `hostAddressLoopback` says so."
        ),
        None => {
            "Services that listen on the host's 127.0.0.1 only are closed to the VM.".to_owned()
        }
    }
}
