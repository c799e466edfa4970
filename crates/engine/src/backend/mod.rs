//! The VM for real: what the configuration asks for, what the host gives, and QEMU started with both.

mod files;
mod machine;
mod network;

use std::{
    ffi::OsString,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hostel_model::{Bytes, ErrorCode, Failure, Paths};
use hostel_proto::{
    limits::{CONTROL_PORT, STREAM_PORT},
    v1,
};
use hostel_qemu::{
    Accel, AccelChoice, AccelRequest, LaunchOptions, MachineConfig, Nic, QemuBinary, VsockDevice,
    kernel_command_line, probe_accel, probe_qemu,
};
use hostel_switch::{NatRecord, Prefix, Verdict};
use hostel_vsock::{Channel, ChannelKind, Device, Listener};
use hostel_wslconf::{FileKind, Level, MachineConf};

use crate::{
    Timeouts,
    backend::{
        files::BootFiles,
        machine::QemuVm,
        network::{Network, Programs},
    },
    engine::lock,
    hypervisor::{Booted, DiskPlan, Hypervisor, NetworkPlan, VmInfo},
    kernels,
    registry::Registry,
};

/// The most memory a VM gets under TCG unless it is asked for: every page is shared memory of this host.
const TCG_MEMORY: Bytes = Bytes::gib(4);

/// Less available memory than this on the host is too little to start a VM.
const LEAST_MEMORY: Bytes = Bytes::mib(384);

/// How long a VM under TCG may take until its agent dials in: on a busy host several times the usual 3 s.
const TCG_PATIENCE: Duration = Duration::from_secs(120);

/// How long QEMU may take until its monitor answers.
const MONITOR_PATIENCE: Duration = Duration::from_secs(30);

/// How many lines of the console are quoted when a VM does not start.
const CONSOLE_LINES: usize = 12;

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

/// The opening of a network, given up with the start that it is for.
struct AbortOnDrop(tokio::task::JoinHandle<Network>);

impl AbortOnDrop {
    async fn wait(mut self) -> Network {
        match (&mut self.0).await {
            Ok(network) => network,
            Err(error) => {
                network::none(&format!("the network was not opened: {error}"), Vec::new())
            }
        }
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a start works from.
struct Plan {
    conf: MachineConf,
    qemu: QemuBinary,
    accel: AccelChoice,
    files: BootFiles,
    memory: Bytes,
    cpus: u32,
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

    /// Finds QEMU; the answer is kept until the program changes its place.
    fn find_qemu(&self) -> Result<QemuBinary, Failure> {
        if let Some(known) = lock(&self.qemu).clone()
            && known.path.is_file()
        {
            return Ok(known);
        }
        let found = probe_qemu(None, &self.programs.path).map_err(|e| {
            Failure::from_error(ErrorCode::QemuMissing, &e)
                .hint("sudo apt-get install qemu-system-x86")
        })?;
        *lock(&self.qemu) = Some(found.clone());
        Ok(found)
    }

    fn choose_accel(&self, conf: &MachineConf) -> Result<AccelChoice, Failure> {
        let request = match conf.hostel.accel {
            hostel_wslconf::Accel::Auto => AccelRequest::Auto,
            hostel_wslconf::Accel::Kvm => AccelRequest::Kvm,
            hostel_wslconf::Accel::Tcg => AccelRequest::Tcg,
        };
        probe_accel(request, self.registry.settings().kvm_failed.as_deref()).map_err(|e| {
            Failure::from_error(ErrorCode::Unsupported, &e)
                .hint("set `accel=auto` in section [hostel] of hostel.conf")
        })
    }

    /// Gathers everything that a start needs. Blocks.
    fn prepare(&self, conf: MachineConf) -> Result<(Plan, Vec<String>), Failure> {
        let mut warnings = Vec::new();
        let kernel = kernels::chosen(&self.registry)?;
        let init = self
            .init
            .as_deref()
            .filter(|p| p.is_file())
            .ok_or_else(|| {
                Failure::new(
                    ErrorCode::VmStart,
                    "the guest program `hostel-init` is not beside `hosteld`",
                )
                .hint("cargo xtask build --release")
                .hint("or set HOSTEL_INIT to its path")
            })?;
        // Asking QEMU takes as long as everything else here.
        let (qemu, files) = std::thread::scope(|scope| {
            let qemu = scope.spawn(|| self.find_qemu());
            let files = files::prepare(&kernel, init, self.registry.layout());
            (qemu.join().expect("probing does not panic"), files)
        });
        let (qemu, files) = (qemu?, files?);
        let accel = self.choose_accel(&conf)?;
        let (total, available) = host_memory();
        if available < LEAST_MEMORY {
            return Err(Failure::new(
                ErrorCode::OutOfMemory,
                format!("the host has {available} of memory available, a VM needs at least {LEAST_MEMORY}"),
            )
            .hint("end some programs and try again"));
        }
        let mut memory = conf.memory_for(total);
        if conf.wsl2.memory.is_none() && accel.accel == Accel::Tcg {
            memory = memory.min(TCG_MEMORY);
        }
        let host_cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let (cpus, capped) = conf.processors_for(host_cpus);
        if capped {
            warnings.push(format!(
                "the setting `processors` asks for more than the host's {host_cpus}; the VM gets {cpus}"
            ));
        }
        for (set, key) in [
            (conf.wsl2.kernel.is_some(), "kernel"),
            (conf.wsl2.kernel_modules.is_some(), "kernelModules"),
        ] {
            if set {
                warnings.push(format!(
                    "the setting `{key}` is not followed; install that kernel: hostel kernel install FILE --modules DIR"
                ));
            }
        }
        if conf.wsl2.memory.is_some_and(|wanted| wanted > total) {
            warnings.push(format!(
                "the setting `memory` asks for more than the host's {total}; the VM gets {memory}"
            ));
        }
        Ok((
            Plan {
                conf,
                qemu,
                accel,
                files,
                memory,
                cpus: cpus.min(255),
            },
            warnings,
        ))
    }

    async fn start(
        &self,
        disks: &[DiskPlan],
        warn: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Booted, Failure> {
        // The scoped threads inside keep `self` borrowed; this blocks one worker for some 0.1 s at most.
        let (conf, warnings) = self.read_conf()?;
        warnings.into_iter().for_each(warn);
        // Beside everything else: some programs have to be started for it.
        let opening = AbortOnDrop(tokio::spawn(network::open(
            Arc::clone(&self.registry),
            conf.clone(),
            self.programs.clone(),
        )));
        let (mut plan, warnings) = tokio::task::block_in_place(|| self.prepare(conf))?;
        warnings.into_iter().for_each(warn);
        let mut network = opening.wait().await;
        network.warnings.iter().cloned().for_each(warn);
        let nic = network.nic(warn).await;
        let failure = match self.launch(&plan, disks, &network, nic).await {
            Ok(mut booted) => {
                network::keep(&self.registry, &network);
                booted.network = network.setup;
                // The boot image went through memory.
                hostel_sys::memory::give_back();
                return Ok(booted);
            }
            Err(failure) => failure,
        };
        let why = failure
            .message
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        let kvm_failed = match plan.accel.accel {
            Accel::Kvm if plan.conf.hostel.accel != hostel_wslconf::Accel::Kvm => {
                warn(format!(
                    "the VM did not start with KVM and is started without it, which is slower: {}",
                    failure.message
                ));
                plan.accel = AccelChoice {
                    accel: Accel::Tcg,
                    reason: format!("KVM failed: {why}"),
                };
                Some(why)
            }
            // On a host that is very busy a guest's timer may stop for good under TCG; the next boot knows nothing of it.
            Accel::Tcg if failure.code == ErrorCode::VmHung => {
                warn(format!(
                    "the VM hung while it started and is started once more: {why}"
                ));
                None
            }
            Accel::Kvm | Accel::Tcg => {
                network.close().await;
                return Err(failure);
            }
        };
        let nic = network.nic(warn).await;
        let mut booted = match self.launch(&plan, disks, &network, nic).await {
            Ok(booted) => booted,
            Err(failure) => {
                network.close().await;
                return Err(failure);
            }
        };
        network::keep(&self.registry, &network);
        booted.network = network.setup;
        // Only now is it KVM's fault.
        if let Some(why) = kvm_failed
            && let Err(error) = self.registry.change_settings(|s| s.kvm_failed = Some(why))
        {
            tracing::warn!(%error, "the failure of KVM was not remembered");
        }
        Ok(booted)
    }

    /// Opens the channel: the kernel's way where it works and its ports are free, else our own device.
    fn open_channel(&self) -> Result<(Channel, Listener, Listener), Failure> {
        let open = |kind: &ChannelKind| -> Result<_, Failure> {
            let failed = |e: &dyn std::error::Error| Failure::from_error(ErrorCode::VmStart, e);
            let channel = Channel::open(kind).map_err(|e| failed(&e))?;
            let control = channel.listen(CONTROL_PORT).map_err(|e| failed(&e))?;
            let streams = channel.listen(STREAM_PORT).map_err(|e| failed(&e))?;
            Ok((channel, control, streams))
        };
        open(&ChannelKind::VhostVsock).or_else(|_| {
            open(&ChannelKind::VhostUser {
                dir: self.paths.runtime.clone(),
            })
        })
    }

    async fn launch(
        &self,
        plan: &Plan,
        disks: &[DiskPlan],
        network: &Network,
        nic: Option<(Nic, Vec<OwnedFd>)>,
    ) -> Result<Booted, Failure> {
        let (channel, mut control, streams) = self.open_channel()?;
        let mut config = MachineConfig::new(
            &plan.qemu,
            plan.accel.accel,
            plan.files.kernel.clone(),
            plan.files.initramfs.clone(),
        );
        config.memory = plan.memory;
        config.cpus = plan.cpus;
        config.append = kernel_command_line(plan.accel.accel, &plan.conf.wsl2.kernel_command_line);
        let descriptors = match nic {
            Some((nic, descriptors)) => {
                config.nic = Some(nic);
                descriptors
            }
            None => Vec::new(),
        };
        let options = LaunchOptions {
            console_log: self.paths.console_log(),
            stderr_log: self.paths.runtime.join("qemu.log"),
            patience: MONITOR_PATIENCE,
            nic: descriptors,
        };
        let start_failure = |e: &dyn std::error::Error| {
            Failure::from_error(ErrorCode::VmStart, e)
                .hint("hostel doctor")
                .hint("hostel logs console")
        };
        let machine = hostel_qemu::Machine::launch(config, options)
            .await
            .map_err(|e| start_failure(&e))?;
        let (device, channel_name) = match channel.device() {
            Device::VhostUser { socket } => (VsockDevice::VhostUser { socket }, "vhost-user-vsock"),
            Device::VhostVsock { cid } => (VsockDevice::VhostVsock { cid }, "vhost-vsock"),
        };
        machine
            .plug_vsock(&device)
            .await
            .map_err(|e| start_failure(&e))?;
        // The disk with modules too: found with the others it costs the guest less than plugged later.
        for disk in disks.iter().chain([&plan.files.modules]) {
            if let Err(error) = machine.attach_disk(&machine::plan(disk)).await {
                tracing::debug!(%error, serial = disk.serial, "a disk is not attached before the start");
            }
        }
        machine.start().await.map_err(|e| start_failure(&e))?;
        let patience = match plan.accel.accel {
            Accel::Kvm => plan.conf.wsl2.kernel_boot_timeout,
            Accel::Tcg => plan.conf.wsl2.kernel_boot_timeout.max(TCG_PATIENCE),
        };
        let dialled = tokio::select! {
            dialled = tokio::time::timeout(patience, control.accept()) => dialled,
            end = machine.wait() => {
                return Err(Failure::new(ErrorCode::VmStart, format!("the VM ended while it started: {end}"))
                    .hint("hostel logs console"));
            }
        };
        let agent = match dialled {
            Ok(Ok(agent)) => agent,
            Ok(Err(error)) => return Err(start_failure(&error)),
            Err(_) => {
                let tail = machine.console_tail(CONSOLE_LINES);
                let said = if tail.is_empty() {
                    "nothing".to_owned()
                } else {
                    format!("\n{tail}")
                };
                return Err(Failure::new(
                    ErrorCode::VmHung,
                    format!(
                        "the VM did not answer within {} s under {}; its console says: {said}",
                        patience.as_secs(),
                        plan.accel.accel
                    ),
                )
                .hint("hostel logs console"));
            }
        };
        let info = VmInfo {
            accel: plan.accel.accel.to_string(),
            accel_reason: plan.accel.reason.clone(),
            qemu_pid: machine.pid(),
            qemu_version: plan.qemu.version.to_string(),
            machine: plan.qemu.machine.clone(),
            channel: channel_name.to_owned(),
            memory_bytes: plan.memory.0,
            cpus: plan.cpus,
            no_network: network.why_none.clone(),
        };
        let configure = v1::ConfigureRequest {
            hostname: crate::distro::host_name(),
            ..v1::ConfigureRequest::default()
        };
        Ok(Booted {
            machine: Arc::new(QemuVm::new(machine, channel, control, streams)),
            control: Box::new(agent),
            configure,
            network: None,
            info,
            modules: Some(plan.files.modules.clone()),
            timeouts: Some(self.timeouts_of(&plan.conf)),
        })
    }

    /// Checks what a start needs, for `doctor`. Blocks for some 0.1 s; on a multi-threaded runtime only.
    pub fn checks(&self) -> Vec<v1::Check> {
        let mut checks = Vec::new();
        let mut say = |name: &str, result: Result<String, Failure>| {
            let (verdict, found, next_step) = match result {
                Ok(found) => ("ok", found, String::new()),
                Err(failure) => (
                    "error",
                    failure.message,
                    failure.hints.into_iter().next().unwrap_or_default(),
                ),
            };
            checks.push(v1::Check {
                name: name.to_owned(),
                verdict: verdict.to_owned(),
                found,
                next_step,
            });
        };
        tokio::task::block_in_place(|| {
            let conf = self.read_conf();
            say(
                "configuration",
                conf.clone().map(|(_, w)| {
                    if w.is_empty() {
                        "read".to_owned()
                    } else {
                        w.join("; ")
                    }
                }),
            );
            let conf = conf.map(|(c, _)| c).unwrap_or_default();
            say(
                "qemu",
                self.find_qemu()
                    .map(|q| format!("{} {}, {}", q.path.display(), q.version, q.machine)),
            );
            say(
                "accel",
                self.choose_accel(&conf)
                    .map(|a| format!("{}: {}", a.accel, a.reason)),
            );
            say(
                "guest program",
                match &self.init {
                    Some(path) if path.is_file() => Ok(path.display().to_string()),
                    _ => Err(Failure::new(
                        ErrorCode::VmStart,
                        "`hostel-init` is not beside `hosteld`",
                    )
                    .hint("cargo xtask build --release")),
                },
            );
            say(
                "host memory",
                match host_memory() {
                    (_, available) if available < LEAST_MEMORY => Err(Failure::new(
                        ErrorCode::OutOfMemory,
                        format!("{available} available"),
                    )
                    .hint("end some programs")),
                    (total, available) => Ok(format!("{available} of {total} available")),
                },
            );
        });
        checks
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

/// Returns the host's memory: all of it, and what programs can still get (proc(5), meminfo).
fn host_memory() -> (Bytes, Bytes) {
    let text = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find_map(|l| {
                l.strip_prefix(name)?
                    .trim()
                    .strip_suffix(" kB")?
                    .parse::<u64>()
                    .ok()
            })
            .map_or(Bytes(u64::MAX), |kib| Bytes(kib.saturating_mul(1024)))
    };
    (field("MemTotal:"), field("MemAvailable:"))
}
