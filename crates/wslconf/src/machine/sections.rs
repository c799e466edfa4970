//! The sections of the machine's file and their defaults.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use hostel_model::Bytes;
use serde::Serialize;

use super::MacAddress;
use crate::{HostNames, Ipv6, NetworkBackend, NetworkingMode};

/// `[wsl2]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(
    missing_docs,
    reason = "the fields are the reference's keys, spelled as it spells them"
)]
pub struct Wsl2 {
    pub kernel: Option<PathBuf>,
    pub kernel_modules: Option<PathBuf>,
    pub kernel_command_line: String,
    pub load_default_kernel_modules: bool,
    pub load_kernel_modules: Vec<String>,
    /// As written; [`super::MachineConf::memory_for`] applies the bounds.
    pub memory: Option<Bytes>,
    /// As written; [`super::MachineConf::processors_for`] applies the bounds.
    pub processors: Option<i32>,
    pub swap: Option<Bytes>,
    pub swap_file: Option<PathBuf>,
    pub localhost_forwarding: bool,
    pub nested_virtualization: bool,
    pub networking_mode: NetworkingMode,
    pub vm_switch: Option<String>,
    pub mac_address: Option<MacAddress>,
    pub dhcp: bool,
    pub dhcp_timeout: Duration,
    pub ipv6: bool,
    pub dns_proxy: bool,
    pub dns_tunneling: bool,
    pub firewall: bool,
    pub auto_proxy: bool,
    pub gpu_support: bool,
    pub gui_applications: bool,
    pub system_distro: Option<PathBuf>,
    pub debug_console: bool,
    pub debug_console_log_file: Option<PathBuf>,
    pub early_boot_logging: Option<bool>,
    pub kernel_debug_port: i32,
    pub kernel_boot_timeout: Duration,
    pub distribution_start_timeout: Duration,
    pub mount_device_timeout: Duration,
    /// `None`: never.
    pub vm_idle_timeout: Option<Duration>,
    pub host_file_system_access: bool,
    pub virtio: bool,
    pub virtio_9p: bool,
    pub virtiofs: bool,
    pub hardware_performance_counters: bool,
    pub safe_mode: bool,
    /// 256 GiB where the reference says 1 TB (DSK-1): a quarter of the tables for the kernel to keep, and it can grow.
    pub default_vhd_size: Bytes,
    pub crash_dump_folder: Option<PathBuf>,
    /// Negative: no dumps are collected.
    pub max_crash_dump_count: i32,
    pub telemetry: bool,
    pub isolate_distro_cgroup: bool,
}

impl Default for Wsl2 {
    fn default() -> Self {
        Self {
            kernel: None,
            kernel_modules: None,
            kernel_command_line: String::new(),
            load_default_kernel_modules: true,
            load_kernel_modules: Vec::new(),
            memory: None,
            processors: None,
            swap: None,
            swap_file: None,
            localhost_forwarding: true,
            nested_virtualization: true,
            networking_mode: NetworkingMode::Nat,
            vm_switch: None,
            mac_address: None,
            dhcp: true,
            dhcp_timeout: Duration::from_secs(5),
            ipv6: false,
            dns_proxy: true,
            dns_tunneling: true,
            firewall: true,
            auto_proxy: true,
            gpu_support: true,
            gui_applications: true,
            system_distro: None,
            debug_console: false,
            debug_console_log_file: None,
            early_boot_logging: None,
            kernel_debug_port: 0,
            kernel_boot_timeout: Duration::from_secs(30),
            distribution_start_timeout: Duration::from_secs(60),
            mount_device_timeout: Duration::from_secs(5),
            vm_idle_timeout: Some(Duration::from_secs(60)),
            host_file_system_access: true,
            virtio: true,
            virtio_9p: false,
            virtiofs: false,
            hardware_performance_counters: true,
            safe_mode: false,
            default_vhd_size: Bytes::gib(256),
            crash_dump_folder: None,
            max_crash_dump_count: 10,
            telemetry: true,
            isolate_distro_cgroup: true,
        }
    }
}

/// `[general]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct General {
    /// How long a distribution without sessions stays; `None`: for ever.
    pub instance_idle_timeout: Option<Duration>,
    /// Where new distributions are put.
    pub distribution_install_path: Option<PathBuf>,
}

impl Default for General {
    fn default() -> Self {
        Self {
            instance_idle_timeout: Some(Duration::from_secs(15)),
            distribution_install_path: None,
        }
    }
}

/// `[experimental]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(
    missing_docs,
    reason = "the fields are the reference's keys, spelled as it spells them"
)]
pub struct Experimental {
    pub auto_memory_reclaim: AutoMemoryReclaim,
    pub sparse_vhd: bool,
    pub best_effort_dns_parsing: bool,
    pub dns_tunneling_ip_address: Ipv4Addr,
    pub initial_auto_proxy_timeout: Duration,
    pub ignored_ports: Vec<u16>,
    pub host_address_loopback: bool,
    pub swiotlb: Option<Bytes>,
    pub virtio_fs_aggregate_shares: bool,
    pub set_version_debug: bool,
}

impl Default for Experimental {
    fn default() -> Self {
        Self {
            auto_memory_reclaim: AutoMemoryReclaim::DropCache,
            sparse_vhd: false,
            best_effort_dns_parsing: false,
            dns_tunneling_ip_address: Ipv4Addr::new(10, 255, 255, 254),
            initial_auto_proxy_timeout: Duration::from_secs(1),
            ignored_ports: Vec::new(),
            host_address_loopback: false,
            swiotlb: None,
            virtio_fs_aggregate_shares: true,
            set_version_debug: false,
        }
    }
}

/// `[hostel]`: keys of our own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostelSection {
    /// `accel`: what runs the guest's code.
    pub accel: Accel,
    /// `debianMirror`: where Debian is bootstrapped from; `None`: what the host's apt uses.
    pub debian_mirror: Option<String>,
    /// `network`: how the VM is connected.
    pub network: NetworkBackend,
    /// `ipv6`: whether the VM gets IPv6 addresses beyond link-local ones.
    pub ipv6: Ipv6,
    /// `relayListen`: the host's addresses on which the guest's ports appear.
    pub relay_listen: Vec<IpAddr>,
    /// `udpPorts`: the UDP ports of the guest that appear on the host; TCP ports appear by themselves. Sorted, each once.
    pub udp_ports: Vec<u16>,
    /// `hostNames`: how the host itself learns the names of the distributions.
    pub host_names: HostNames,
}

impl Default for HostelSection {
    fn default() -> Self {
        Self {
            accel: Accel::default(),
            debian_mirror: None,
            network: NetworkBackend::default(),
            ipv6: Ipv6::default(),
            relay_listen: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            udp_ports: Vec::new(),
            host_names: HostNames::default(),
        }
    }
}

/// What runs the guest's code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where it works, else TCG.
    #[default]
    Auto,
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// What happens to cached memory of an idle machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AutoMemoryReclaim {
    /// It is kept.
    Disabled,
    /// It is given back bit by bit.
    Gradual,
    /// It is dropped at once.
    #[default]
    DropCache,
}
