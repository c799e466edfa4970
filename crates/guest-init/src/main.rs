//! `/init`, the one static program of the guest.
//!
//! It is PID 1 of the VM (the *machine*), the agent that serves the daemon, the kernel's module loader, and, through
//! `hostel-instance`, everything that runs inside a distribution under our name. Which of these a process is, its arguments
//! say.
//!
//! Not for: logic that can live in a library. A program: it wires `instance` and `proto` together.

mod agent;
mod console;
mod machine;
mod modprobe;
mod modules;
mod shell;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let called_as = arguments.first().map_or(&b""[..], |a| a.as_bytes());
    if called_as.ends_with(b"modprobe") {
        return modprobe::role(&arguments[1..]);
    }
    if let Some(code) = hostel_instance::run_role(arguments.iter().cloned()) {
        return code;
    }
    match arguments.get(1).map(|a| a.as_bytes()) {
        Some(b"agent") => return agent::role(&arguments[2..]),
        Some(b"modprobe") => return modprobe::role(&arguments[2..]),
        Some(b"debug-shell") => return shell::role(&arguments[2..]),
        _ => {}
    }
    if rustix::process::getpid().is_init() {
        return machine::role();
    }
    console::say(
        console::Level::Error,
        "this program is the init of a Hostel machine; it has no use by hand",
    );
    ExitCode::from(2)
}
