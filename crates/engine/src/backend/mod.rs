//! The VM for real: what the configuration asks for, what the host gives, and QEMU started with both.

mod checks;
mod files;
mod machine;
mod network;
mod prepare;
mod start;

use std::{
    ffi::OsString,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hostel_model::{Bytes, ErrorCode, Failure, Paths};
use hostel_qemu::QemuBinary;
use hostel_switch::{NatRecord, Prefix, Verdict};
use hostel_wslconf::{FileKind, Level, MachineConf};

use crate::{
    Timeouts,
    backend::network::Programs,
    hypervisor::{Booted, DiskPlan, Hypervisor, NetworkPlan},
    registry::Registry,
};

/// How long something idle stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// For ever.
    Never,
    /// So long.
    After(Duration),
}

impl Idle {
    /// Returns the time; `None` is for ever.
    pub const fn time(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::After(time) => Some(time),
        }
    }
}

/// What the environment sets over the configuration.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// How long an idle distribution stays.
    pub instance_idle: Option<Idle>,
    /// How long an idle VM stays.
    pub vm_idle: Option<Idle>,
}

/// Starts VMs with QEMU.
#[derive(Debug)]
pub struct VmBackend {
    registry: Arc<Registry>,
    paths: Paths,
    init: Option<PathBuf>,
    programs: Programs,
    overrides: Overrides,
    qemu: Mutex<Option<QemuBinary>>,
}

impl VmBackend {
    /// Describes where things are; nothing is looked at before the first start. `init` is the guest's `/init`,
    /// `hostel_net` the program that makes bridges and taps.
    pub fn new(
        registry: Arc<Registry>,
        paths: Paths,
        init: Option<PathBuf>,
        hostel_net: PathBuf,
        search_path: OsString,
        overrides: Overrides,
    ) -> Self {
        Self {
            registry,
            paths,
            init,
            programs: Programs {
                hostel_net,
                path: search_path,
            },
            overrides,
            qemu: Mutex::default(),
        }
    }

    /// Returns the times that the configuration and the environment ask for. Blocks for a moment.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts_of(&self.read_conf().map(|(conf, _)| conf).unwrap_or_default())
    }

    fn timeouts_of(&self, conf: &MachineConf) -> Timeouts {
        Timeouts {
            instance_idle: self
                .overrides
                .instance_idle
                .map_or(conf.general.instance_idle_timeout, Idle::time),
            vm_idle: self
                .overrides
                .vm_idle
                .map_or(conf.wsl2.vm_idle_timeout, Idle::time),
            distro_start: conf.wsl2.distribution_start_timeout,
            ..Timeouts::default()
        }
    }

    /// Returns where the configuration says Debian is bootstrapped from. Blocks for a moment.
    pub fn debian_mirror(&self) -> Option<String> {
        self.read_conf().ok()?.0.hostel.debian_mirror
    }

    /// Returns how large the configuration lets the disk of a new distribution grow. Blocks for a moment.
    pub fn default_disk_size(&self) -> Bytes {
        let conf = self.read_conf().map(|(conf, _)| conf);
        conf.unwrap_or_default().wsl2.default_vhd_size
    }

    /// Reads the first configuration file that exists. Mistakes in the reference's file are warnings (ERR-4).
    fn read_conf(&self) -> Result<(MachineConf, Vec<String>), Failure> {
        for (i, path) in self.paths.config_files.iter().enumerate() {
            let text = match fs_err::read(path) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Failure::from_error(ErrorCode::Config, &e)),
            };
            let kind = if i == 0 {
                FileKind::HostelConf
            } else {
                FileKind::WslConfig
            };
            let (conf, problems) = MachineConf::parse(&text, kind);
            let shown = |w: &hostel_wslconf::Warning| format!("{}:{w}", path.display());
            if let Some(error) = problems.iter().find(|p| p.level == Level::Error) {
                return Err(Failure::new(ErrorCode::Config, shown(error))
                    .hint(format!("correct {}", path.display())));
            }
            return Ok((conf, problems.iter().map(shown).collect()));
        }
        Ok((MachineConf::default(), Vec::new()))
    }
}

impl Hypervisor for VmBackend {
    fn boot<'a>(
        &'a self,
        disks: &'a [DiskPlan],
        warn: &'a (dyn Fn(String) + Send + Sync),
    ) -> BoxFuture<'a, Result<Booted, Failure>> {
        Box::pin(self.start(disks, warn))
    }

    fn network_plan(&self) -> NetworkPlan {
        match self.read_conf() {
            Ok((conf, _)) => network::plan(&self.registry, &conf),
            Err(failure) => {
                let mut plan = network::plan(&self.registry, &MachineConf::default());
                plan.warnings.push(failure.message);
                plan
            }
        }
    }

    fn network_change(
        &self,
        subnet: Option<Prefix>,
        gateway: Option<Ipv4Addr>,
        address: Option<Ipv4Addr>,
    ) -> Result<NatRecord, Failure> {
        network::change(self.network_plan(), subnet, gateway, address)
    }

    fn network_verdicts(&self) -> BoxFuture<'_, Vec<Verdict>> {
        Box::pin(async move {
            // Reads some small files.
            let plan = self.network_plan();
            network::verdicts(plan, self.programs.clone()).await
        })
    }
}
