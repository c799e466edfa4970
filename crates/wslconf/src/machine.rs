//! `.wslconfig` and `hostel.conf`: what holds for the whole machine.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use hostel_model::Bytes;
use serde::Serialize;

use crate::{
    FileKind, HostNames, Ipv6, Level, NetworkBackend, NetworkingMode, Problem, Warning, network,
    value::{
        Values, boolean, integer, millis, millis_or_never, optional_string, path, size, string,
        word,
    },
    warning::shown,
};

/// What the machine's file says. `None` where the default depends on the host or on another key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MachineConf {
    /// `[wsl2]`, with the keys that moved here from `[experimental]`.
    pub wsl2: Wsl2,
    /// `[general]`.
    pub general: General,
    /// `[experimental]`.
    pub experimental: Experimental,
    /// `[hostel]`: what the reference does not have.
    pub hostel: HostelSection,
}

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
    /// As written; [`MachineConf::memory_for`] applies the bounds.
    pub memory: Option<Bytes>,
    /// As written; [`MachineConf::processors_for`] applies the bounds.
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

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let why =
            || "it is six pairs of hexadecimal digits with `:` or `-` between them".to_owned();
        let separator = if text.contains(':') { ':' } else { '-' };
        let mut bytes = [0; 6];
        let mut parts = text.split(separator);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(why)?;
        }
        if parts.next().is_some() {
            Err(why())
        } else {
            Ok(Self(bytes))
        }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if i == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl MachineConf {
    /// Reads a text; invalid lines are skipped (CNF-4). In a [`FileKind::HostelConf`] every problem is an error.
    pub fn parse(text: &str, kind: FileKind) -> (Self, Vec<Warning>) {
        let mut values = Values::new(text, kind);
        let v = &mut values;
        let mut conf = Self::default();

        let c = &mut conf.wsl2;
        v.set(&mut c.kernel, "wsl2.kernel", path);
        let modules = v.entry(&["wsl2.kernelModules"]);
        if let Some(entry) = &modules {
            c.kernel_modules = path(&entry.value).unwrap_or_default();
            if c.kernel_modules.is_some() && c.kernel.is_none() {
                v.warn(
                    entry,
                    Level::Error,
                    Problem::Needs {
                        key: "wsl2.kernelModules",
                        needs: "wsl2.kernel",
                    },
                );
            }
        }
        v.set(&mut c.kernel_command_line, "wsl2.kernelCommandLine", string);
        v.set(
            &mut c.load_default_kernel_modules,
            "wsl2.loadDefaultKernelModules",
            boolean,
        );
        v.set(
            &mut c.load_kernel_modules,
            "wsl2.loadKernelModules",
            |text| Ok(list(text).map(str::to_owned).collect()),
        );
        v.set(&mut c.memory, "wsl2.memory", |text| size(text).map(Some));
        v.set(&mut c.processors, "wsl2.processors", |text| {
            integer(text).map(Some)
        });
        v.set(&mut c.swap, "wsl2.swap", |text| size(text).map(Some));
        v.set(&mut c.swap_file, "wsl2.swapFile", path);
        v.set(
            &mut c.localhost_forwarding,
            "wsl2.localhostForwarding",
            boolean,
        );
        v.set(
            &mut c.nested_virtualization,
            "wsl2.nestedVirtualization",
            boolean,
        );
        v.set(&mut c.vm_switch, "wsl2.vmSwitch", optional_string);
        if let Some(entry) = v.entry(&["wsl2.macAddress"]) {
            match entry.value.parse() {
                Ok(address) => c.mac_address = Some(address),
                // The reference does not start with a malformed one.
                Err(why) => {
                    let problem = Problem::BadValue {
                        key: entry.written.clone(),
                        value: shown(&entry.value),
                        why,
                    };
                    v.warn(&entry, Level::Error, problem);
                }
            }
        }
        v.set(&mut c.dhcp, "wsl2.dhcp", boolean);
        v.set(&mut c.dhcp_timeout, "wsl2.dhcpTimeout", millis);
        v.set(&mut c.ipv6, "wsl2.ipv6", boolean);
        v.set(&mut c.dns_proxy, "wsl2.dnsProxy", boolean);
        v.set(&mut c.gpu_support, "wsl2.gpuSupport", boolean);
        v.set(&mut c.gui_applications, "wsl2.guiApplications", boolean);
        v.set(&mut c.system_distro, "wsl2.systemDistro", path);
        v.set(&mut c.debug_console, "wsl2.debugConsole", boolean);
        v.set(
            &mut c.debug_console_log_file,
            "wsl2.debugConsoleLogFile",
            path,
        );
        c.debug_console |= c.debug_console_log_file.is_some();
        v.set(&mut c.early_boot_logging, "wsl2.earlyBootLogging", |text| {
            boolean(text).map(Some)
        });
        v.set(&mut c.kernel_debug_port, "wsl2.kernelDebugPort", integer);
        v.set(&mut c.kernel_boot_timeout, "wsl2.kernelBootTimeout", millis);
        v.set(
            &mut c.distribution_start_timeout,
            "wsl2.distributionStartTimeout",
            millis,
        );
        v.set(
            &mut c.mount_device_timeout,
            "wsl2.mountDeviceTimeout",
            millis,
        );
        v.set(
            &mut c.vm_idle_timeout,
            "wsl2.vmIdleTimeout",
            millis_or_never,
        );
        v.set(
            &mut c.host_file_system_access,
            "wsl2.hostFileSystemAccess",
            boolean,
        );
        v.set(&mut c.virtio, "wsl2.virtio", boolean);
        v.set(&mut c.virtio_9p, "wsl2.virtio9p", boolean);
        v.set(&mut c.virtiofs, "wsl2.virtiofs", boolean);
        v.set(
            &mut c.hardware_performance_counters,
            "wsl2.hardwarePerformanceCounters",
            boolean,
        );
        v.set(&mut c.safe_mode, "wsl2.safeMode", boolean);
        v.set(&mut c.default_vhd_size, "wsl2.defaultVhdSize", size);
        v.set(&mut c.crash_dump_folder, "wsl2.crashDumpFolder", path);
        v.set(
            &mut c.max_crash_dump_count,
            "wsl2.maxCrashDumpCount",
            integer,
        );
        v.set(&mut c.telemetry, "wsl2.telemetry", boolean);
        v.set(
            &mut c.isolate_distro_cgroup,
            "wsl2.isolateDistroCgroup",
            boolean,
        );

        // These began in `[experimental]` and are still known there.
        let moved = |key: &str| [format!("wsl2.{key}"), format!("experimental.{key}")];
        let mut moved_bool = |place: &mut bool, key: &str| {
            let [new, old] = moved(key);
            if let Some(value) = v.get(&[&new, &old], boolean) {
                *place = value;
            }
        };
        moved_bool(&mut c.dns_tunneling, "dnsTunneling");
        moved_bool(&mut c.firewall, "firewall");
        moved_bool(&mut c.auto_proxy, "autoProxy");
        let [new, old] = moved("networkingMode");
        if let Some(mode) = v.get(&[&new, &old], network::mode) {
            c.networking_mode = mode;
        }

        v.set(
            &mut conf.general.instance_idle_timeout,
            "general.instanceIdleTimeout",
            millis_or_never,
        );
        v.set(
            &mut conf.general.distribution_install_path,
            "general.distributionInstallPath",
            path,
        );

        let e = &mut conf.experimental;
        let reclaim = |text: &str| {
            use AutoMemoryReclaim::{Disabled, DropCache, Gradual};
            word(
                text,
                &[
                    ("disabled", Disabled),
                    ("gradual", Gradual),
                    ("dropCache", DropCache),
                ],
            )
        };
        v.set(
            &mut e.auto_memory_reclaim,
            "experimental.autoMemoryReclaim",
            reclaim,
        );
        v.set(&mut e.sparse_vhd, "experimental.sparseVhd", boolean);
        v.set(
            &mut e.best_effort_dns_parsing,
            "experimental.bestEffortDnsParsing",
            boolean,
        );
        if let Some(entry) = v.entry(&["experimental.dnsTunnelingIpAddress"]) {
            // An address that every room has on its own `lo`, or that no interface can have, would serve nobody.
            let fits = |address: &Ipv4Addr| {
                let special = address.is_unspecified() || address.is_broadcast();
                !(special || address.is_loopback() || address.is_multicast())
            };
            if let Some(address) = entry.value.parse().ok().filter(fits) {
                e.dns_tunneling_ip_address = address;
            } else {
                conf.wsl2.dns_tunneling = false;
                let why = "it is an IPv4 address that an interface can have, no loopback one, so DNS tunneling is off"
                    .to_owned();
                let problem = Problem::BadValue {
                    key: entry.written.clone(),
                    value: shown(&entry.value),
                    why,
                };
                v.warn(&entry, v.level(), problem);
            }
        }
        v.set(
            &mut e.initial_auto_proxy_timeout,
            "experimental.initialAutoProxyTimeout",
            millis,
        );
        e.ignored_ports = items(v, "experimental.ignoredPorts", port).unwrap_or_default();
        v.set(
            &mut e.host_address_loopback,
            "experimental.hostAddressLoopback",
            boolean,
        );
        v.set(&mut e.swiotlb, "experimental.swiotlb", |text| {
            size(text).map(Some)
        });
        v.set(
            &mut e.virtio_fs_aggregate_shares,
            "experimental.virtioFsAggregateShares",
            boolean,
        );
        v.set(
            &mut e.set_version_debug,
            "experimental.setVersionDebug",
            boolean,
        );

        let accel = |text: &str| {
            word(
                text,
                &[
                    ("auto", Accel::Auto),
                    ("kvm", Accel::Kvm),
                    ("tcg", Accel::Tcg),
                ],
            )
        };
        v.set(&mut conf.hostel.accel, "hostel.accel", accel);
        v.set(
            &mut conf.hostel.debian_mirror,
            "hostel.debianMirror",
            mirror,
        );
        network::read(v, &mut conf.hostel);
        (conf, values.finish())
    }

    /// Returns the machine's memory on a host with `host` bytes: half of it when not set, at least 256 MiB, at most the
    /// host's, in steps of 2 MiB.
    pub fn memory_for(&self, host: Bytes) -> Bytes {
        let wanted = self.wsl2.memory.unwrap_or(Bytes(host.0 / 2));
        let bounded = wanted.0.max(Bytes::mib(256).0).min(host.0);
        Bytes(bounded & !(Bytes::mib(2).0 - 1))
    }

    /// Returns the machine's processors on a host with `host` of them, and whether fewer than asked for.
    pub fn processors_for(&self, host: u32) -> (u32, bool) {
        match self
            .wsl2
            .processors
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| *n > 0)
        {
            Some(wanted) => (wanted.min(host), wanted > host),
            None => (host, false),
        }
    }
}

fn mirror(text: &str) -> Result<Option<String>, String> {
    let known = ["http://", "https://", "file:/", "copy:/"]
        .iter()
        .any(|scheme| text.starts_with(scheme));
    if text.is_empty() || (known && text.chars().all(|c| c.is_ascii_graphic())) {
        return Ok((!text.is_empty()).then(|| text.to_owned()));
    }
    Err("it is a URL that apt understands".to_owned())
}

/// Returns the good items of a key that holds a list; the others are noted. `None` when the key is not given, or gives
/// items but no good one.
pub(crate) fn items<T>(
    v: &mut Values,
    key: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    let entry = v.entry(&[key])?;
    let mut found = Vec::new();
    let mut bad = false;
    for part in list(&entry.value) {
        match parse(part) {
            Ok(item) => found.push(item),
            Err(why) => {
                bad = true;
                let problem = Problem::BadItem {
                    key: entry.written.clone(),
                    value: shown(part),
                    why,
                };
                v.warn(&entry, v.level(), problem);
            }
        }
    }
    (!bad || !found.is_empty()).then_some(found)
}

pub(crate) fn port(text: &str) -> Result<u16, String> {
    let port = integer(text).ok().and_then(|port| u16::try_from(port).ok());
    port.filter(|port| *port > 0)
        .ok_or_else(|| "a port is a number from 1 to 65535".to_owned())
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> (MachineConf, Vec<String>) {
        let (conf, warnings) = MachineConf::parse(text, FileKind::WslConfig);
        (conf, warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn nothing_gives_the_defaults() {
        let (conf, warnings) = conf("");
        assert_eq!((conf.clone(), warnings), (MachineConf::default(), vec![]));
        assert_eq!(conf.wsl2.vm_idle_timeout, Some(Duration::from_secs(60)));
        assert_eq!(conf.wsl2.default_vhd_size, Bytes::gib(256));
    }

    #[test]
    fn the_keys_we_act_on_are_read() {
        let (conf, warnings) = conf(
            "[wsl2]\nkernel=/boot/vmlinuz\nkernelModules=/lib/modules/6.1\nkernelCommandLine=\"quiet a=b # c\"\nmemory=4GB\n\
             processors=0x2\nnetworkingMode=NAT\nvmIdleTimeout=-1\nkernelBootTimeout=90000\ndistributionStartTimeout=0\n\
             defaultVhdSize=64GB\n[general]\ninstanceIdleTimeout=-1\ndistributionInstallPath=/srv/d\n[hostel]\naccel=TCG\n\
             debianMirror=http://mirror.example/debian\n",
        );
        assert_eq!(warnings, [""; 0]);
        assert_eq!(conf.wsl2.kernel_command_line, "quiet a=b # c");
        assert_eq!(
            (conf.wsl2.memory, conf.wsl2.processors),
            (Some(Bytes::gib(4)), Some(2))
        );
        assert_eq!(
            (
                conf.wsl2.vm_idle_timeout,
                conf.general.instance_idle_timeout
            ),
            (None, None)
        );
        assert_eq!(conf.wsl2.kernel_boot_timeout, Duration::from_secs(90));
        assert_eq!(conf.wsl2.default_vhd_size, Bytes::gib(64));
        assert_eq!(
            (conf.hostel.accel, conf.wsl2.networking_mode),
            (Accel::Tcg, NetworkingMode::Nat)
        );
    }

    #[test]
    fn every_other_key_is_known_too() {
        let bools = "loadDefaultKernelModules localhostForwarding nestedVirtualization dhcp ipv6 dnsProxy dnsTunneling firewall autoProxy \
            gpuSupport guiApplications debugConsole earlyBootLogging hostFileSystemAccess virtio virtio9p virtiofs \
            hardwarePerformanceCounters safeMode telemetry isolateDistroCgroup";
        let mut text = "[wsl2]\n".to_owned();
        for key in bools.split_whitespace() {
            text.extend([key, "=1\n"]);
        }
        text += "loadKernelModules=a, b\nswap=0\nswapFile=/x\nvmSwitch=x\nmacAddress=5E-bb-f6-9e-ee-55\ndhcpTimeout=1\n\
            systemDistro=/x\ndebugConsoleLogFile=/x\nkernelDebugPort=1\nmountDeviceTimeout=1\ncrashDumpFolder=/x\nmaxCrashDumpCount=-1\n\
            [experimental]\nautoMemoryReclaim=GRADUAL\nsparseVhd=1\nbestEffortDnsParsing=1\ndnsTunnelingIpAddress=10.0.0.1\n\
            initialAutoProxyTimeout=1\nignoredPorts=1, 65535\nhostAddressLoopback=1\nswiotlb=64MB\nvirtioFsAggregateShares=0\nsetVersionDebug=1\n";
        let (conf, warnings) = conf(&text);
        assert_eq!(warnings, [""; 0]);
        assert_eq!(conf.wsl2.load_kernel_modules, ["a", "b"]);
        assert_eq!(
            conf.wsl2.mac_address.unwrap().to_string(),
            "5e:bb:f6:9e:ee:55"
        );
        assert_eq!(conf.experimental.ignored_ports, [1, 65535]);
        assert_eq!(
            conf.experimental.auto_memory_reclaim,
            AutoMemoryReclaim::Gradual
        );
    }

    /// CNF-4, CNF-5.
    #[test]
    fn mistakes_are_skipped_and_told() {
        let (conf, warnings) = conf(
            "[wsl2]\nmemory=4gb\nswapFile=C:\\x\nprocessors=3\nprocessors=4\nkernelModules=/m\nkernelBootTimeout=-5\nmacAddress=1:2\n\
             [experimental]\nnetworkingMode=virtioproxy\nignoredPorts=80,x,0,443\ndnsTunnelingIpAddress=x\n[wsl2]\nnetworkingMode=nat\n",
        );
        assert_eq!((conf.wsl2.memory, conf.wsl2.processors), (None, Some(3)));
        assert_eq!(conf.wsl2.networking_mode, NetworkingMode::Consomme);
        assert_eq!(conf.experimental.ignored_ports, [80, 443]);
        assert!(!conf.wsl2.dns_tunneling);
        let lines: Vec<&str> = warnings
            .iter()
            .map(|w| w.split(':').next().unwrap())
            .collect();
        assert_eq!(
            lines,
            ["2", "3", "5", "6", "7", "8", "11", "11", "12", "14"],
            "{warnings:#?}"
        );
        assert!(warnings[9].contains("line 10"), "{}", warnings[9]);
        assert!(warnings[3].contains("needs `wsl2.kernel`"));
    }

    #[test]
    fn in_our_own_file_problems_are_errors() {
        let text = "[hostel]\ncolour=blue\naccel=warp\n";
        let (_, ours) = MachineConf::parse(text, FileKind::HostelConf);
        assert!(ours.len() == 2 && ours.iter().all(|w| w.level == Level::Error));
        let (_, theirs) = MachineConf::parse(text, FileKind::WslConfig);
        assert!(theirs.iter().all(|w| w.level == Level::Warning));
    }

    #[test]
    fn memory_and_processors_are_bounded() {
        let host = Bytes::gib(8);
        for (text, want) in [
            ("", 4096),
            ("memory=1MB", 256),
            ("memory=1TB", 8192),
            ("memory=1025MB", 1024),
            ("memory=3GB", 3072),
        ] {
            assert_eq!(
                conf(&format!("[wsl2]\n{text}\n"))
                    .0
                    .memory_for(host)
                    .whole_mib(),
                want,
                "{text}"
            );
        }
        for (text, want) in [
            ("", (4, false)),
            ("processors=0", (4, false)),
            ("processors=-3", (4, false)),
            ("processors=2", (2, false)),
            ("processors=9", (4, true)),
        ] {
            assert_eq!(
                conf(&format!("[wsl2]\n{text}\n")).0.processors_for(4),
                want,
                "{text}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(text in "(\\[(wsl2|experimental|hostel)\\]\n|(memory|processors|macAddress|ignoredPorts|accel)=|\\PC{0,8}|\n){0,20}") {
            let (conf, _) = MachineConf::parse(&text, FileKind::WslConfig);
            let _ = (conf.memory_for(Bytes::gib(1)), conf.processors_for(2));
        }
    }
}
