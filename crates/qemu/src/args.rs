//! QEMU's command line: one struct a switch, fields spelled as QEMU spells them, put together in `add_*` functions only.

use std::{ffi::OsString, os::fd::RawFd, path::Path};

use serde_json::Value;

use crate::{
    config::{MAX_SPARE_PORTS, MachineConfig},
    nic::{self, FILTER_ID, FILTER_SOCKETS, NETDEV_ID, NIC_ID, Netdev, PORT_ID},
    probe::SANDBOX,
    threads::Threads,
};

/// Id of the memory and of the machine's built-in devices; part of the saved state, so never changed lightly.
const MEMORY_ID: &str = "mem0";
/// The bus that the machine itself has.
const ROOT_BUS: &str = "pcie.0";
/// The controller that disks are plugged into.
pub(crate) const SCSI_ID: &str = "scsi0";
/// Id of the balloon.
const BALLOON_ID: &str = "balloon0";
/// The name by which the guest finds the life-cycle port.
pub const LIFECYCLE_PORT: &str = "hostel.lifecycle";

/// Slots on the root bus. 0 is the host bridge, 0x1f the chipset.
mod slot {
    pub(super) const SCSI: u8 = 2;
    pub(super) const SERIAL: u8 = 3;
    pub(super) const BALLOON: u8 = 4;
    pub(super) const RNG: u8 = 5;
    pub(super) const NET: u8 = 6;
    pub(super) const ROOT_PORTS: u8 = 0x10;
}

/// Returns the id of a spare root port.
pub(crate) fn root_port_id(index: u8) -> String {
    format!("rp{index}")
}

/// The descriptors QEMU inherits, by the numbers they have there.
#[derive(Clone, Debug)]
pub(crate) struct Inherited {
    pub(crate) memory: RawFd,
    pub(crate) qmp: RawFd,
    pub(crate) console: RawFd,
    pub(crate) lifecycle: RawFd,
    /// What the card's [`Netdev`] takes.
    pub(crate) nic: Vec<RawFd>,
}

/// The value of a switch: a first word and `key=value` pairs. Commas in values are doubled, as QEMU wants them.
struct Opts(String);

impl Opts {
    fn new(first: &str) -> Self {
        Self(first.replace(',', ",,"))
    }

    fn put(mut self, key: &str, value: impl ToString) -> Self {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(key);
        self.0.push('=');
        self.0.push_str(&value.to_string().replace(',', ",,"));
        self
    }
}

/// `-machine`
struct Machine<'a> {
    r#type: &'a str,
    memory_backend: &'a str,
}

/// `-object memory-backend-file`: the memory, which the host process made and keeps.
struct MemoryBackendFile<'a> {
    id: &'a str,
    size: u64,
    mem_path: String,
}

/// `-chardev socket` on an inherited descriptor.
struct ChardevSocket<'a> {
    id: &'a str,
    fd: RawFd,
}

/// `-device pcie-root-port`
struct PcieRootPort {
    id: String,
    addr: u8,
    chassis: u8,
    slot: u8,
}

/// `-device` for a virtio device. Modern interface only: there is no driver for the old one to serve.
struct VirtioPci<'a> {
    driver: &'a str,
    id: &'a str,
    bus: &'a str,
    addr: u8,
}

/// `-device virtserialport`
struct VirtSerialPort<'a> {
    id: &'a str,
    bus: &'a str,
    nr: u8,
    chardev: &'a str,
    name: &'a str,
}

/// A command line that grows.
#[derive(Debug, Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, switch: &str) {
        self.0.push(switch.into());
    }

    fn switch(&mut self, switch: &str, value: impl Into<OsString>) {
        self.0.push(switch.into());
        self.0.push(value.into());
    }

    fn opts(&mut self, switch: &str, opts: Opts) {
        self.switch(switch, opts.0);
    }

    fn add_machine(&mut self, m: &Machine<'_>) {
        let opts = Opts::new(m.r#type)
            .put("memory-backend", m.memory_backend)
            // Devices of the chipset that nobody asked for, and guest memory in core dumps.
            .put("sata", "off")
            .put("smbus", "off")
            .put("vmport", "off")
            .put("dump-guest-core", "off");
        self.opts("-machine", opts);
    }

    fn add_memory(&mut self, m: &MemoryBackendFile<'_>) {
        let opts = Opts::new("memory-backend-file")
            .put("id", m.id)
            .put("size", m.size)
            .put("mem-path", &m.mem_path)
            .put("share", "on")
            .put("prealloc", "off");
        self.opts("-object", opts);
    }

    fn add_chardev(&mut self, c: &ChardevSocket<'_>) {
        self.opts(
            "-chardev",
            Opts::new("socket").put("id", c.id).put("fd", c.fd),
        );
    }

    fn add_root_port(&mut self, p: &PcieRootPort) {
        let opts = Opts::new("pcie-root-port")
            .put("id", &p.id)
            .put("bus", ROOT_BUS)
            .put("addr", format!("{:#x}", p.addr))
            .put("chassis", p.chassis)
            .put("slot", p.slot);
        self.opts("-device", opts);
    }

    fn add_virtio(&mut self, d: &VirtioPci<'_>, more: &[(&str, &str)]) {
        let mut opts = Opts::new(d.driver)
            .put("id", d.id)
            .put("bus", d.bus)
            .put("addr", format!("{:#x}", d.addr))
            .put("disable-legacy", "on");
        for (key, value) in more {
            opts = opts.put(key, value);
        }
        self.opts("-device", opts);
    }

    fn add_serial_port(&mut self, p: &VirtSerialPort<'_>) {
        let opts = Opts::new("virtserialport")
            .put("id", p.id)
            .put("bus", p.bus)
            .put("nr", p.nr)
            .put("chardev", p.chardev)
            .put("name", p.name);
        self.opts("-device", opts);
    }

    fn add_netdev(&mut self, netdev: &Netdev, fds: &[RawFd]) {
        let names: Vec<String> = fds.iter().map(ToString::to_string).collect();
        let (kind, properties) = netdev.properties(&names);
        let mut opts = Opts::new(kind).put("id", NETDEV_ID);
        for (key, value) in properties {
            opts = match value {
                Value::Bool(value) => opts.put(key, if value { "on" } else { "off" }),
                Value::String(value) => opts.put(key, value),
                other => opts.put(key, other),
            };
        }
        self.opts("-netdev", opts);
        if netdev.filtered() {
            for (id, &fd) in FILTER_SOCKETS
                .into_iter()
                .zip(&fds[netdev.own_descriptors()..])
            {
                self.add_chardev(&ChardevSocket { id, fd });
            }
            let mut opts = Opts::new("filter-redirector").put("id", FILTER_ID);
            for (key, value) in nic::filter() {
                opts = opts.put(key, value);
            }
            self.opts("-object", opts);
        }
    }

    fn add_kernel(&mut self, kernel: &Path, initrd: &Path, append: &str) {
        self.switch("-kernel", kernel);
        self.switch("-initrd", initrd);
        self.switch("-append", append);
    }
}

/// Builds the whole command line, without the program. The machine starts paused.
pub(crate) fn command_line(config: &MachineConfig, fds: &Inherited) -> Vec<OsString> {
    let mut args = Args::default();
    args.switch("-name", "hostel,debug-threads=on");
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.switch("-display", "none");
    args.flag("-no-reboot");
    args.flag("-S");
    if config.qemu.sandbox {
        args.switch("-sandbox", SANDBOX);
    }
    args.add_machine(&Machine {
        r#type: &config.machine,
        memory_backend: MEMORY_ID,
    });
    let mut accel = Opts::new(config.accel.as_str());
    if config.cpus > 1 && Threads::of(config.accel, config.qemu.version) == Threads::One {
        accel = accel.put("thread", "single");
    }
    args.opts("-accel", accel);
    args.switch("-cpu", &config.cpu);
    args.opts("-smp", Opts::new("").put("cpus", config.cpus));
    args.opts(
        "-m",
        Opts::new("").put("size", format!("{}M", config.memory.whole_mib())),
    );
    args.add_memory(&MemoryBackendFile {
        id: MEMORY_ID,
        size: config.memory.0,
        mem_path: format!("/proc/self/fd/{}", fds.memory),
    });
    if let Some(firmware) = &config.qemu.firmware {
        args.switch("-bios", firmware);
    }
    args.add_kernel(&config.kernel.path, &config.initramfs.path, &config.append);

    args.add_chardev(&ChardevSocket {
        id: "qmp",
        fd: fds.qmp,
    });
    args.opts(
        "-mon",
        Opts::new("").put("chardev", "qmp").put("mode", "control"),
    );
    args.add_chardev(&ChardevSocket {
        id: "console",
        fd: fds.console,
    });
    args.switch("-serial", "chardev:console");
    args.add_chardev(&ChardevSocket {
        id: "lifecycle",
        fd: fds.lifecycle,
    });

    args.add_virtio(
        &VirtioPci {
            driver: "virtio-scsi-pci",
            id: SCSI_ID,
            bus: ROOT_BUS,
            addr: slot::SCSI,
        },
        &[],
    );
    let serial = VirtioPci {
        driver: "virtio-serial-pci",
        id: "serial0",
        bus: ROOT_BUS,
        addr: slot::SERIAL,
    };
    args.add_virtio(&serial, &[("max_ports", "2")]);
    args.add_serial_port(&VirtSerialPort {
        id: "lifecycle0",
        bus: "serial0.0",
        nr: 1,
        chardev: "lifecycle",
        name: LIFECYCLE_PORT,
    });
    let balloon = VirtioPci {
        driver: "virtio-balloon-pci",
        id: BALLOON_ID,
        bus: ROOT_BUS,
        addr: slot::BALLOON,
    };
    args.add_virtio(
        &balloon,
        &[("free-page-reporting", "on"), ("deflate-on-oom", "on")],
    );
    args.switch("-object", "rng-random,id=random0,filename=/dev/urandom");
    args.add_virtio(
        &VirtioPci {
            driver: "virtio-rng-pci",
            id: "rng0",
            bus: ROOT_BUS,
            addr: slot::RNG,
        },
        &[("rng", "random0")],
    );
    args.add_root_port(&PcieRootPort {
        id: PORT_ID.to_owned(),
        addr: slot::NET,
        chassis: MAX_SPARE_PORTS + 1,
        slot: MAX_SPARE_PORTS + 1,
    });
    if let Some(nic) = &config.nic {
        args.add_netdev(&nic.netdev, &fds.nic);
        let card = VirtioPci {
            driver: nic::DRIVER,
            id: NIC_ID,
            bus: PORT_ID,
            addr: 0,
        };
        // No boot ROM: nothing is ever booted from the network.
        args.add_virtio(
            &card,
            &[("netdev", NETDEV_ID), ("mac", &nic.mac), ("romfile", "")],
        );
    }
    for index in 0..config.spare_ports {
        args.add_root_port(&PcieRootPort {
            id: root_port_id(index),
            addr: slot::ROOT_PORTS + index,
            chassis: index + 1,
            slot: index + 1,
        });
    }
    args.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{accel::Accel, config::tests::example};

    fn line(config: &MachineConfig) -> Vec<String> {
        let fds = Inherited {
            memory: 10,
            qmp: 11,
            console: 12,
            lifecycle: 13,
            nic: vec![14, 15, 16],
        };
        command_line(config, &fds)
            .into_iter()
            .map(|a| a.into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_command_line_is_this_and_nothing_else() {
        let want = "-name hostel,debug-threads=on
-nodefaults
-no-user-config
-display none
-no-reboot
-S
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine pc-q35-7.2,memory-backend=mem0,sata=off,smbus=off,vmport=off,dump-guest-core=off
-accel tcg,thread=single
-cpu max,erms=off,fsrm=off
-smp cpus=2
-m size=1024M
-object memory-backend-file,id=mem0,size=1073741824,mem-path=/proc/self/fd/10,share=on,prealloc=off
-bios /usr/share/qemu/qboot.rom
-kernel /boot/vmlinux
-initrd /boot/initramfs
-append quiet
-chardev socket,id=qmp,fd=11
-mon chardev=qmp,mode=control
-chardev socket,id=console,fd=12
-serial chardev:console
-chardev socket,id=lifecycle,fd=13
-device virtio-scsi-pci,id=scsi0,bus=pcie.0,addr=0x2,disable-legacy=on
-device virtio-serial-pci,id=serial0,bus=pcie.0,addr=0x3,disable-legacy=on,max_ports=2
-device virtserialport,id=lifecycle0,bus=serial0.0,nr=1,chardev=lifecycle,name=hostel.lifecycle
-device virtio-balloon-pci,id=balloon0,bus=pcie.0,addr=0x4,disable-legacy=on,free-page-reporting=on,deflate-on-oom=on
-object rng-random,id=random0,filename=/dev/urandom
-device virtio-rng-pci,id=rng0,bus=pcie.0,addr=0x5,disable-legacy=on,rng=random0
-device pcie-root-port,id=rpnet,bus=pcie.0,addr=0x6,chassis=13,slot=13
-netdev user,id=net0,ipv4=on,ipv6=off,net=172.19.128.0/20,host=172.19.128.1,dhcpstart=172.19.132.144,dns=172.19.128.53
-device virtio-net-pci,id=nic0,bus=rpnet,addr=0x0,disable-legacy=on,netdev=net0,mac=52:54:00:12:34:56,romfile=
-device pcie-root-port,id=rp0,bus=pcie.0,addr=0x10,chassis=1,slot=1
-device pcie-root-port,id=rp1,bus=pcie.0,addr=0x11,chassis=2,slot=2";
        let want: Vec<&str> = want.split([' ', '\n']).collect();
        let got = line(&example());
        assert_eq!(got, want);
    }

    #[test]
    fn each_way_into_the_network_has_its_switches() {
        let mut config = example();
        let switches = |config: &MachineConfig| {
            let line = line(config).join(" ");
            let start = line.find("-netdev").unwrap();
            let end = line.find("-device virtio-net-pci").unwrap();
            line[start..end].trim().to_owned()
        };
        let nic = config.nic.as_mut().unwrap();
        nic.netdev = Netdev::Tap;
        assert_eq!(switches(&config), "-netdev tap,id=net0,fd=14");
        config.nic.as_mut().unwrap().netdev = Netdev::Stream { filtered: true };
        assert_eq!(
            switches(&config),
            "-netdev stream,id=net0,addr.type=fd,addr.str=14 \
             -chardev socket,id=filter-out,fd=15 -chardev socket,id=filter-back,fd=16 \
             -object filter-redirector,id=filter0,netdev=net0,queue=rx,outdev=filter-out,indev=filter-back"
        );
    }

    #[test]
    fn values_cannot_add_options_of_their_own() {
        let mut config = example();
        config.accel = Accel::Kvm;
        config.cpu = "host".into();
        config.qemu.sandbox = false;
        config.qemu.firmware = None;
        config.kernel.path = "/a,b c/vmlinux".into();
        if let Some(nic) = &mut config.nic {
            nic.mac = "52:54:00:12:34:56,romfile=x".into();
        }
        let got = line(&config);
        assert!(!got.iter().any(|a| a == "-sandbox" || a == "-bios"));
        assert!(
            got.contains(&"/a,b c/vmlinux".to_owned()),
            "-kernel takes its value whole"
        );
        assert!(
            got.iter()
                .any(|a| a.contains("mac=52:54:00:12:34:56,,romfile=x,romfile="))
        );
    }
}
