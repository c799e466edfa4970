//! PID 1 of the VM: makes the machine, starts the agent, and then only reaps.
//!
//! Nothing here waits for a service. What cannot be survived is said on the console and powers the VM off, so that the
//! host never waits for a machine that hangs.

mod settle;

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};
use rustix::system::RebootCommand;

use crate::console::{Level, chain, say, say_error};
use crate::modules::{self, BootModules};

/// Exit status by which the agent asks for the power to be switched off.
pub(crate) const POWER_OFF_STATUS: u8 = 86;

/// The most starts of the agent within [`RESTART_WINDOW`]; more is a machine that cannot be used.
const MAX_STARTS: usize = 5;

/// See [`MAX_STARTS`].
const RESTART_WINDOW: Duration = Duration::from_secs(60);

/// Why the machine cannot go on.
#[derive(Debug, thiserror::Error)]
enum FatalError {
    #[error("cannot make the machine")]
    Settle(#[from] settle::SettleError),
    #[error("cannot start the agent")]
    Spawn(#[source] std::io::Error),
    #[error("the agent ended {MAX_STARTS} times within {} seconds", RESTART_WINDOW.as_secs())]
    AgentKeepsEnding,
    #[error("cannot wait for children")]
    Wait(#[source] Errno),
}

/// Runs the machine; returns only when even switching the power off failed.
pub(crate) fn role() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        say(
            Level::Fatal,
            format_args!("PID 1 of the machine failed: {panic}"),
        );
        power_off();
    }));
    match run() {
        Err(error) => say(
            Level::Fatal,
            format_args!("{}; switching the power off", chain(&error)),
        ),
    }
    power_off();
    ExitCode::FAILURE
}

fn run() -> Result<Infallible, FatalError> {
    settle::root_and_kernel_views()?;
    // The agent starts while the modules load: it waits for the device that it dials through.
    let mut agent = start_agent()?;
    load_boot_modules();
    let mut starts = vec![Instant::now()];
    loop {
        let (pid, status) = match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(Errno::INTR) => continue,
            Err(error) => return Err(FatalError::Wait(error)),
        };
        if pid != agent_pid(&agent) {
            continue;
        }
        if status.exit_status() == Some(i32::from(POWER_OFF_STATUS)) {
            power_off();
        }
        let why = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        say(
            Level::Error,
            format_args!("the agent {why}; starting it again"),
        );
        starts.retain(|at| at.elapsed() < RESTART_WINDOW);
        if starts.len() >= MAX_STARTS {
            return Err(FatalError::AgentKeepsEnding);
        }
        starts.push(Instant::now());
        agent = start_agent()?;
    }
}

/// Loads what is needed to reach the host first, then the rest (network, memory, file systems).
fn load_boot_modules() {
    let Some(boot) = BootModules::open(&modules::release_directory()) else {
        return;
    };
    for stage in [b'1', b'2'] {
        for error in boot.load_stage(stage) {
            say_error("loading a module of the boot image", &error);
        }
    }
}

fn start_agent() -> Result<Child, FatalError> {
    Command::new("/init")
        .arg0("init")
        .arg("agent")
        .spawn()
        .map_err(FatalError::Spawn)
}

fn agent_pid(agent: &Child) -> Pid {
    Pid::from_raw(agent.id() as i32).expect("the id of a child is positive")
}

/// Writes everything back and switches the power off.
fn power_off() {
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
        say(
            Level::Fatal,
            format_args!("cannot switch the power off: {error}"),
        );
    }
}
