//! Giving up every right that the work does not need, before the first byte of a request is read.

use hostel_sys::process::SingleThreaded;
use rustix::{
    process::DumpableBehavior,
    thread::{CapabilitySet, CapabilitySets},
};

use super::fail::OrRefuse;
use crate::protocol::{Refusal, RefusalCode};

/// What the work on the host's network takes: links, routes and tables; port 53.
const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_BIND_SERVICE);

/// Keeps [`NEEDED`] alone, for good: nothing that is executed from here on could have more.
pub(super) fn to_network(_proof: &SingleThreaded) -> Result<(), Refusal> {
    let mine = rustix::thread::capabilities(None).or_refuse("cannot read the capabilities")?;
    if !mine.permitted.contains(CapabilitySet::NET_ADMIN) {
        return Err(Refusal::new(
            RefusalCode::Denied,
            "changing the host's network needs the capability `net_admin`",
        ));
    }
    keep_needed()?;
    // Nobody looks into a process that has more rights than they.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .or_refuse("cannot become undumpable")?;
    // The end of the client is seen at the socket, and there is work to do then: no signal may come before it.
    rustix::process::set_parent_process_death_signal(None)
        .or_refuse("cannot outlive the client")?;
    hostel_sys::signal::ignore(&[
        rustix::process::Signal::HUP.as_raw(),
        rustix::process::Signal::INT.as_raw(),
        rustix::process::Signal::TERM.as_raw(),
    ]);
    Ok(())
}

/// Keeps [`NEEDED`] alone.
///
/// In a user namespace this is also what lets `pasta`, which keeps little more, open our network namespace: the kernel shows
/// it to nobody who has less than we (ptrace(2), access mode checking).
pub(super) fn keep_needed() -> Result<(), Refusal> {
    let mine = rustix::thread::capabilities(None).or_refuse("cannot read the capabilities")?;
    rustix::thread::set_no_new_privs(true).or_refuse("cannot renounce new privileges")?;
    let _ = rustix::thread::clear_ambient_capability_set();
    let kept = mine.permitted & NEEDED;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).or_refuse("cannot give up capabilities")
}

/// Refuses to make a user namespace, in which programs are executed, with more rights than the caller has.
pub(super) fn is_unprivileged() -> Result<(), Refusal> {
    let mine = rustix::thread::capabilities(None).or_refuse("cannot read the capabilities")?;
    if !rustix::process::getuid().is_root() && !mine.permitted.is_empty() {
        return Err(Refusal::new(
            RefusalCode::Denied,
            "the privileged helper works on the host's own network alone",
        ));
    }
    Ok(())
}
