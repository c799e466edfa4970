//! Reading the keys of the machine's file, one after the other.

use std::net::Ipv4Addr;

use super::{Accel, AutoMemoryReclaim, General, HostelSection, MachineConf, Wsl2};
use crate::{
    FileKind, Level, Problem, Warning, network,
    value::{
        Values, boolean, integer, items, list, millis, millis_or_never, optional_string, path,
        port, size, string, word,
    },
    warning::shown,
};

impl MachineConf {
    /// Reads a text; invalid lines are skipped (CNF-4). In a [`FileKind::HostelConf`] every problem is an error.
    pub fn parse(text: &str, kind: FileKind) -> (Self, Vec<Warning>) {
        let mut values = Values::new(text, kind);
        let v = &mut values;
        let mut conf = Self::default();

        wsl2(v, &mut conf.wsl2);
        moved_here(v, &mut conf.wsl2);
        general(v, &mut conf.general);
        experimental(v, &mut conf);
        hostel(v, &mut conf.hostel);
        (conf, values.finish())
    }
}

fn wsl2(v: &mut Values, c: &mut Wsl2) {
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
}

/// The keys of `[wsl2]` that began in `[experimental]` and are still known there.
fn moved_here(v: &mut Values, c: &mut Wsl2) {
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
}

fn general(v: &mut Values, c: &mut General) {
    v.set(
        &mut c.instance_idle_timeout,
        "general.instanceIdleTimeout",
        millis_or_never,
    );
    v.set(
        &mut c.distribution_install_path,
        "general.distributionInstallPath",
        path,
    );
}

fn experimental(v: &mut Values, conf: &mut MachineConf) {
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
}

fn hostel(v: &mut Values, c: &mut HostelSection) {
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
    v.set(&mut c.accel, "hostel.accel", accel);
    v.set(&mut c.debian_mirror, "hostel.debianMirror", mirror);
    network::read(v, c);
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
