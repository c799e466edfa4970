//! A VM started with QEMU: its channel, its disks, its network, and its agent's first words.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use hostel_model::{ErrorCode, Failure};
use hostel_proto::{
    limits::{CONTROL_PORT, STREAM_PORT},
    v1,
};
use hostel_qemu::{
    Accel, AccelChoice, LaunchOptions, MachineConfig, Nic, VsockDevice, kernel_command_line,
};
use hostel_vsock::{Channel, ChannelKind, Device, Listener};

use super::{
    VmBackend,
    machine::{self, QemuVm},
    network::{self, Network},
    prepare::Plan,
};
use crate::hypervisor::{Booted, DiskPlan, VmInfo};

/// How long a VM under TCG may take until its agent dials in: on a busy host several times the usual 3 s.
const TCG_PATIENCE: Duration = Duration::from_secs(120);

/// How long QEMU may take until its monitor answers.
const MONITOR_PATIENCE: Duration = Duration::from_secs(30);

/// How many lines of the console are quoted when a VM does not start.
const CONSOLE_LINES: usize = 12;

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

impl VmBackend {
    /// Starts a VM; without KVM, or once more, when the first start fails in a way that this may cure.
    pub(super) async fn start(
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
        let (cpus, cpus_reason) = plan.cpus();
        config.cpus = cpus;
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
            cpus,
            cpus_reason,
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
}
