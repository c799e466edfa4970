//! The life of the VM and of a distribution, as two tables.
//!
//! Every state and every event is spelled out: a new one does not compile until each table says what it means.

use std::fmt;

/// An event that a state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{event}` is not possible while {state}")]
pub struct InvalidTransition {
    /// The state it was in.
    pub state: &'static str,
    /// The event that was refused.
    pub event: &'static str,
}

/// What the VM is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum VmState {
    /// No QEMU process.
    #[default]
    Off,
    /// From the decision to start until the agent has been configured.
    Starting,
    /// The agent answers.
    Running,
    /// Asked to power off.
    Stopping,
    /// It ended without being asked to; the next start clears this.
    Crashed,
}

/// What happens to the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmEvent {
    /// Somebody needs it.
    Start,
    /// The agent is configured.
    Ready,
    /// It did not come up; nothing of it is left.
    StartFailed,
    /// Somebody wants it off.
    Stop,
    /// QEMU ended, or was ended because the VM did not answer, without a stop.
    Died,
    /// QEMU ended after a stop.
    Ended,
}

impl VmState {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Off,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Crashed,
    ];

    /// Returns the word of the wire and the screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Crashed => "crashed",
        }
    }

    /// Returns the state after an event.
    pub const fn transition(self, event: VmEvent) -> Result<Self, InvalidTransition> {
        use VmEvent as E;
        match (self, event) {
            (Self::Off | Self::Crashed, E::Start) => Ok(Self::Starting),
            (Self::Starting, E::Ready) => Ok(Self::Running),
            (Self::Starting, E::StartFailed) | (Self::Stopping, E::Ended | E::Died) => {
                Ok(Self::Off)
            }
            (Self::Running, E::Stop) => Ok(Self::Stopping),
            (Self::Running, E::Died) => Ok(Self::Crashed),
            (
                Self::Off | Self::Crashed,
                E::Ready | E::StartFailed | E::Stop | E::Died | E::Ended,
            )
            | (Self::Starting, E::Start | E::Stop | E::Died | E::Ended)
            | (Self::Running, E::Start | E::Ready | E::StartFailed | E::Ended)
            | (Self::Stopping, E::Start | E::Ready | E::StartFailed | E::Stop) => {
                Err(InvalidTransition {
                    state: self.as_str(),
                    event: event.as_str(),
                })
            }
        }
    }
}

impl VmEvent {
    /// Every event.
    pub const ALL: [Self; 6] = [
        Self::Start,
        Self::Ready,
        Self::StartFailed,
        Self::Stop,
        Self::Died,
        Self::Ended,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Ready => "ready",
            Self::StartFailed => "start failed",
            Self::Stop => "stop",
            Self::Died => "died",
            Self::Ended => "ended",
        }
    }
}

/// What a distribution is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DistroState {
    /// Registered, its disk not in use.
    #[default]
    Stopped,
    /// Being imported; not registered yet, but its name is taken.
    Installing,
    /// From the decision to start until its PID 1 is there.
    Starting,
    /// Its PID 1 runs.
    Running,
    /// Asked to stop; its disk may still be mounted.
    Stopping,
    /// Its disk is being read into an archive.
    Exporting,
    /// Its disk is being deleted.
    Removing,
}

/// What happens to a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DistroEvent {
    /// The import is complete.
    Installed,
    /// Somebody needs it.
    Start,
    /// Its PID 1 is there.
    Started,
    /// It did not start; its disk is free again.
    StartFailed,
    /// Somebody wants it stopped.
    Stop,
    /// Its disk could not be unmounted; it stays attached.
    StopFailed,
    /// Its PID 1 is gone and its disk free, for whatever reason.
    Ended,
    /// Somebody wants an archive of it.
    Export,
    /// The archive is written, or given up.
    ExportEnded,
    /// Somebody wants it gone.
    Remove,
    /// It could not be deleted and is still registered.
    RemoveFailed,
}

impl DistroState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Stopped,
        Self::Installing,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Exporting,
        Self::Removing,
    ];

    /// Returns the word of the wire and the screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Installing => "installing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Exporting => "exporting",
            Self::Removing => "removing",
        }
    }

    /// Returns the state after an event.
    pub const fn transition(self, event: DistroEvent) -> Result<Self, InvalidTransition> {
        use DistroEvent as E;
        match (self, event) {
            (Self::Installing, E::Installed)
            | (Self::Starting, E::StartFailed | E::Ended)
            | (Self::Running | Self::Stopping, E::Ended)
            | (Self::Exporting, E::ExportEnded)
            | (Self::Removing, E::RemoveFailed) => Ok(Self::Stopped),
            (Self::Stopped, E::Start) => Ok(Self::Starting),
            (Self::Starting, E::Started) | (Self::Stopping, E::StopFailed) => Ok(Self::Running),
            (Self::Running, E::Stop) => Ok(Self::Stopping),
            (Self::Stopped, E::Export) => Ok(Self::Exporting),
            (Self::Stopped, E::Remove) => Ok(Self::Removing),
            (
                Self::Installing,
                E::Start
                | E::Started
                | E::StartFailed
                | E::Stop
                | E::StopFailed
                | E::Ended
                | E::Export
                | E::ExportEnded
                | E::Remove
                | E::RemoveFailed,
            )
            | (
                Self::Stopped,
                E::Installed
                | E::Started
                | E::StartFailed
                | E::Stop
                | E::StopFailed
                | E::Ended
                | E::ExportEnded
                | E::RemoveFailed,
            )
            | (
                Self::Starting,
                E::Installed
                | E::Start
                | E::Stop
                | E::StopFailed
                | E::Export
                | E::ExportEnded
                | E::Remove
                | E::RemoveFailed,
            )
            | (
                Self::Running,
                E::Installed
                | E::Start
                | E::Started
                | E::StartFailed
                | E::StopFailed
                | E::Export
                | E::ExportEnded
                | E::Remove
                | E::RemoveFailed,
            )
            | (
                Self::Stopping,
                E::Installed
                | E::Start
                | E::Started
                | E::StartFailed
                | E::Stop
                | E::Export
                | E::ExportEnded
                | E::Remove
                | E::RemoveFailed,
            )
            | (
                Self::Exporting,
                E::Installed
                | E::Start
                | E::Started
                | E::StartFailed
                | E::Stop
                | E::StopFailed
                | E::Ended
                | E::Export
                | E::Remove
                | E::RemoveFailed,
            )
            | (
                Self::Removing,
                E::Installed
                | E::Start
                | E::Started
                | E::StartFailed
                | E::Stop
                | E::StopFailed
                | E::Ended
                | E::Export
                | E::ExportEnded
                | E::Remove,
            ) => Err(InvalidTransition {
                state: self.as_str(),
                event: event.as_str(),
            }),
        }
    }
}

impl DistroEvent {
    /// Every event.
    pub const ALL: [Self; 11] = [
        Self::Installed,
        Self::Start,
        Self::Started,
        Self::StartFailed,
        Self::Stop,
        Self::StopFailed,
        Self::Ended,
        Self::Export,
        Self::ExportEnded,
        Self::Remove,
        Self::RemoveFailed,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Start => "start",
            Self::Started => "started",
            Self::StartFailed => "start failed",
            Self::Stop => "stop",
            Self::StopFailed => "stop failed",
            Self::Ended => "ended",
            Self::Export => "export",
            Self::ExportEnded => "export ended",
            Self::Remove => "remove",
            Self::RemoveFailed => "remove failed",
        }
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for DistroState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vm_table_is_exactly_this() {
        use VmEvent as E;
        use VmState as S;
        let allowed = [
            (S::Off, E::Start, S::Starting),
            (S::Crashed, E::Start, S::Starting),
            (S::Starting, E::Ready, S::Running),
            (S::Starting, E::StartFailed, S::Off),
            (S::Running, E::Stop, S::Stopping),
            (S::Running, E::Died, S::Crashed),
            (S::Stopping, E::Ended, S::Off),
            (S::Stopping, E::Died, S::Off),
        ];
        for state in S::ALL {
            for event in E::ALL {
                let want = allowed
                    .iter()
                    .find(|(s, e, _)| (*s, *e) == (state, event))
                    .map(|(_, _, to)| *to);
                assert_eq!(state.transition(event).ok(), want, "{state} {event:?}");
            }
        }
    }

    #[test]
    fn the_distro_table_is_exactly_this() {
        use DistroEvent as E;
        use DistroState as S;
        let allowed = [
            (S::Installing, E::Installed, S::Stopped),
            (S::Stopped, E::Start, S::Starting),
            (S::Stopped, E::Export, S::Exporting),
            (S::Stopped, E::Remove, S::Removing),
            (S::Starting, E::Started, S::Running),
            (S::Starting, E::StartFailed, S::Stopped),
            (S::Starting, E::Ended, S::Stopped),
            (S::Running, E::Stop, S::Stopping),
            (S::Running, E::Ended, S::Stopped),
            (S::Stopping, E::Ended, S::Stopped),
            (S::Stopping, E::StopFailed, S::Running),
            (S::Exporting, E::ExportEnded, S::Stopped),
            (S::Removing, E::RemoveFailed, S::Stopped),
        ];
        for state in S::ALL {
            for event in E::ALL {
                let want = allowed
                    .iter()
                    .find(|(s, e, _)| (*s, *e) == (state, event))
                    .map(|(_, _, to)| *to);
                assert_eq!(state.transition(event).ok(), want, "{state} {event:?}");
            }
        }
        assert_eq!(
            S::Exporting.transition(E::Start).unwrap_err().to_string(),
            "`start` is not possible while exporting"
        );
    }
}
