//! One QEMU: finding it, describing a machine as one hashable value, its command line, its life as a child process, and
//! everything that is plugged while it runs, by QMP.
//!
//! Not for: when a VM is wanted, what is on its disks, who answers at the other end of its channel, or locking files against
//! other VMs. A mechanism.

mod accel;
mod args;
mod config;
mod disk;
mod log;
mod machine;
mod nic;
mod probe;
mod qmp;
mod threads;

pub use self::{
    accel::{Accel, AccelChoice, AccelRequest, KvmUnavailable, choose_accel, probe_accel},
    args::LIFECYCLE_PORT,
    config::{
        BootFile, ConfigError, ConfigHash, MAX_SPARE_PORTS, MachineConfig, QemuIdentity,
        kernel_command_line,
    },
    disk::{AttachDisk, DiskError, DiskFile, DiskFormat, MAX_DISKS},
    machine::{ExitReason, LaunchError, LaunchOptions, Machine, PlugError, VsockDevice},
    nic::{Netdev, Nic, UserIpv6},
    probe::{ProbeError, QemuBinary, Version, probe_qemu},
    qmp::{COMMAND_TIMEOUT, Event, Qmp, QmpError, Status},
    threads::Threads,
};
