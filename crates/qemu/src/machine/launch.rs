//! Starting QEMU: memory, inherited sockets, logs, and the first words on the monitor.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use hostel_model::Bytes;
use hostel_sys::{
    memfd,
    spawn::{Child, Spawn, Stream},
};
use tokio::sync::watch;

use super::{ExitReason, Machine, exit::watch_exit};
use crate::{
    args::{Inherited, command_line},
    config::{ConfigError, MachineConfig},
    log::{BoundedLog, Drain},
    qmp::{Qmp, QmpError},
};

/// What a start needs besides the configuration.
#[derive(Debug)]
pub struct LaunchOptions {
    /// Takes the guest's console; replaced. Its beginning (64 KiB) and its end (256 KiB and more) are kept.
    pub console_log: PathBuf,
    /// Takes QEMU's standard error; replaced, kept in the same way.
    pub stderr_log: PathBuf,
    /// How long QEMU may take until its monitor answers.
    pub patience: Duration,
    /// What the card's [`Netdev`](crate::Netdev) takes, in its order.
    pub nic: Vec<OwnedFd>,
}

/// Why QEMU did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The configuration is not one of a machine.
    #[error("the VM's configuration is wrong")]
    Config(#[from] ConfigError),
    /// Not the descriptors that the card takes.
    #[error("the VM's network card takes {wanted} descriptors, and {given} are given")]
    Descriptors {
        /// How many it takes.
        wanted: usize,
        /// How many there are.
        given: usize,
    },
    /// No memory file.
    #[error("cannot make {size} of memory for the VM")]
    Memory {
        /// The size.
        size: Bytes,
        /// The cause.
        source: io::Error,
    },
    /// A log, a socket or a thread could not be made.
    #[error("cannot prepare {what} for QEMU")]
    Prepare {
        /// What.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The program cannot be run.
    #[error("cannot run `{program}`")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It ended before the monitor answered.
    #[error("{0}")]
    Ended(ExitReason),
    /// It runs and does not answer.
    #[error("QEMU's monitor does not answer")]
    Monitor(#[source] QmpError),
}

/// What the blocking part of a start makes.
struct Started {
    child: Child,
    memory: File,
    qmp: UnixStream,
    lifecycle: UnixStream,
    console: Drain,
    stderr: Drain,
}

impl Machine {
    /// Starts QEMU, paused, and waits until its monitor answers. Nothing is left behind when it fails or is cancelled.
    ///
    /// Needs no privileges beyond reading the boot files (and `/dev/kvm` for KVM). QEMU is killed when this process ends in
    /// any way.
    pub async fn launch(
        config: MachineConfig,
        options: LaunchOptions,
    ) -> Result<Self, LaunchError> {
        config.validate()?;
        let wanted = config.nic.as_ref().map_or(0, |n| n.netdev.descriptors());
        if options.nic.len() != wanted {
            let given = options.nic.len();
            return Err(LaunchError::Descriptors { wanted, given });
        }
        let patience = options.patience;
        let task = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || start(&config, options))
        };
        let internal = |error: tokio::task::JoinError| LaunchError::Prepare {
            what: "a thread",
            source: io::Error::other(error),
        };
        let Started {
            child,
            memory,
            qmp,
            lifecycle,
            console,
            stderr,
        } = task.await.map_err(internal)??;
        let child = Arc::new(child);
        let console = Arc::new(console);
        let asked = Arc::new(AtomicBool::new(false));
        let (publish, exit) = watch::channel(None);
        let mut guard = KillOnDrop(Some(Arc::clone(&child)));
        let watched = (Arc::clone(&child), Arc::clone(&asked), Arc::clone(&console));
        std::thread::Builder::new()
            .name("vm-exit".into())
            .spawn(move || watch_exit(&watched.0, &watched.1, &stderr, &watched.2, &publish))
            .map_err(|source| LaunchError::Prepare {
                what: "a thread",
                source,
            })?;
        let stream = qmp
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(qmp))
            .map_err(|source| LaunchError::Prepare {
                what: "the monitor",
                source,
            })?;
        let qmp = match Qmp::connect(stream, patience).await {
            Ok(qmp) => qmp,
            Err(QmpError::Closed(_)) => return Err(LaunchError::Ended(ended(&child, exit).await)),
            Err(error) => return Err(LaunchError::Monitor(error)),
        };
        guard.0 = None;
        let ports = vec![None; usize::from(config.spare_ports)];
        Ok(Self {
            config,
            child,
            qmp,
            memory,
            lifecycle: Mutex::new(Some(lifecycle)),
            disks: tokio::sync::Mutex::default(),
            ports: tokio::sync::Mutex::new(ports),
            nic: tokio::sync::Mutex::new(()),
            asked,
            exit,
            console,
        })
    }
}

/// Waits for the reason of an end that is under way: the monitor closed.
async fn ended(child: &Child, mut exit: watch::Receiver<Option<ExitReason>>) -> ExitReason {
    let wait = exit.wait_for(Option::is_some);
    if let Ok(Ok(reason)) = tokio::time::timeout(Duration::from_secs(5), wait).await {
        return reason.clone().unwrap_or_else(ExitReason::unknown);
    }
    // Alive without a monitor: of no use.
    let _ = child.kill();
    ExitReason::unknown()
}

/// Ends a QEMU whose owner never came to be; the thread that watches it then ends as well.
struct KillOnDrop(Option<Arc<Child>>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &self.0 {
            let _ = child.kill();
        }
    }
}

fn start(config: &MachineConfig, options: LaunchOptions) -> Result<Started, LaunchError> {
    let prepare = |what| move |source| LaunchError::Prepare { what, source };
    let memory =
        memfd::create("guest-memory", config.memory.0).map_err(|source| LaunchError::Memory {
            size: config.memory,
            source,
        })?;
    let (qmp, qmp_qemu) = UnixStream::pair().map_err(prepare("the monitor"))?;
    let (console, console_qemu) = UnixStream::pair().map_err(prepare("the console"))?;
    let (lifecycle, lifecycle_qemu) = UnixStream::pair().map_err(prepare("the life-cycle port"))?;
    let (stderr, stderr_qemu) = io::pipe().map_err(prepare("standard error"))?;
    let log = BoundedLog::create(&options.console_log).map_err(prepare("the console log"))?;
    let console = Drain::start("vm-console", console, log).map_err(prepare("the console log"))?;
    let log = BoundedLog::create(&options.stderr_log).map_err(prepare("QEMU's log"))?;
    let stderr = Drain::start("vm-stderr", stderr, log).map_err(prepare("QEMU's log"))?;

    let mut spawn = Spawn::new(&config.qemu.path);
    let fds = Inherited {
        memory: spawn.inherit(memory.try_clone().map_err(prepare("the memory"))?),
        qmp: spawn.inherit(qmp_qemu.into()),
        console: spawn.inherit(console_qemu.into()),
        lifecycle: spawn.inherit(lifecycle_qemu.into()),
        nic: options
            .nic
            .into_iter()
            .map(|fd| spawn.inherit(fd))
            .collect(),
    };
    spawn
        .args(command_line(config, &fds))
        .stderr(Stream::Fd(stderr_qemu.into()));
    let child = spawn.start().map_err(|source| LaunchError::Spawn {
        program: config.qemu.path.clone(),
        source,
    })?;
    Ok(Started {
        child,
        memory: memory.into(),
        qmp,
        lifecycle,
        console,
        stderr,
    })
}
