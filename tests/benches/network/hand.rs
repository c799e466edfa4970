//! The same QEMU with a bridge and a tap that were made by hand.

use std::{
    net::IpAddr,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use hostel_tests::{
    bench::{
        machine::{CommandLine, Initramfs},
        peer::{self, Kit, PLACE},
    },
    run::host,
    world,
};

use crate::site::{ALL, Site};

const BRIDGE: &str = "hand0";
const TAP: &str = "hand0-tap";
const GATEWAY: &str = "10.99.0.1";
const ADDRESS: &str = "10.99.0.2";
/// The driver of the network card, each module after those that it needs.
const MODULES: [&str; 8] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
];

/// A machine with the processor, memory, firmware, kernel, kernel command line and network card of one of ours, whose init
/// does nothing but give the card an address and be the other end.
pub(crate) struct Hand {
    child: Child,
    /// Its address.
    pub(crate) address: IpAddr,
    _dir: tempfile::TempDir,
}

impl Hand {
    /// Starts it and waits until it answers.
    pub(crate) fn like(site: &Site, kit: &Kit) -> Result<Self> {
        let pid = *site.home.qemu_pids().first().context("a machine runs")?;
        let line = CommandLine::of(pid)?;
        let dir = tempfile::tempdir()?;
        let initrd = dir.path().join("i.cpio");
        fs_err::write(&initrd, initramfs(kit)?)?;
        let mut arguments = line.bare_with_shared_memory(&initrd)?;
        for value in line.values("-device") {
            if value.starts_with("virtio-net-pci,") || value.contains("id=rpnet,") {
                arguments.extend(["-device".into(), another_mac(value).into()]);
            }
        }
        let netdev = format!("tap,id=net0,ifname={TAP},script=no,downscript=no,vnet_hdr=on");
        arguments.extend(["-netdev".into(), netdev.into()]);

        let console = dir.path().join("console");
        remove();
        for words in [
            format!("link add {BRIDGE} type bridge stp_state 0 forward_delay 0"),
            format!("addr add {GATEWAY}/24 dev {BRIDGE}"),
            format!("tuntap add {TAP} mode tap vnet_hdr"),
            format!("link set {TAP} master {BRIDGE} up"),
            format!("link set {BRIDGE} up"),
        ] {
            host("ip", &words.split(' ').collect::<Vec<_>>())?.ok();
        }
        let child = Command::new("qemu-system-x86_64")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(fs_err::File::create(&console)?.into_file())
            .spawn()
            .context("qemu-system-x86_64")?;
        let hand = Self {
            child,
            address: ADDRESS.parse()?,
            _dir: dir,
        };
        peer::wait_for(&[], hand.address, ALL)
            .with_context(|| fs_err::read_to_string(&console).unwrap_or_default())?;
        Ok(hand)
    }

    /// Plays a role towards it; returns the figure.
    pub(crate) fn measure(&self, verb: &str, seconds: f64) -> Result<f64> {
        let role = format!("{verb} {} {ALL} {seconds}", self.address);
        Ok(peer::ask(&[], &role)?.parse()?)
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        remove();
    }
}

fn remove() {
    for link in [TAP, BRIDGE] {
        // What is not there need not be removed.
        let _ = host("ip", &["link", "del", link]);
    }
}

/// Gives the card another address than the running one has.
fn another_mac(device: &str) -> String {
    device
        .split(',')
        .map(|part| {
            if part.starts_with("mac=") {
                "mac=52:54:00:99:00:02"
            } else {
                part
            }
        })
        .collect::<Vec<_>>()
        .join(",")
}

fn initramfs(kit: &Kit) -> Result<Vec<u8>> {
    let role = Kit::line(&format!("serve 0.0.0.0 {ALL}"));
    let modules = MODULES.map(|m| m.rsplit('/').next().unwrap_or(m)).join(" ");
    let mut archive = Initramfs::new(&format!(
        "#!/bin/busybox sh\n\
         b=/bin/busybox\n\
         $b mount -t proc proc /proc\n\
         $b mount -t sysfs sysfs /sys\n\
         for m in {modules}; do [ ! -e /modules/$m ] || $b insmod /modules/$m; done\n\
         n=0; until [ -e /sys/class/net/eth0 ] || [ $n = 100 ]; do $b usleep 100000; n=$((n+1)); done\n\
         $b ip link set lo up\n\
         $b ip addr add {ADDRESS}/24 dev eth0\n\
         $b ip link set eth0 up\n\
         {role}\n\
         $b poweroff -f\n"
    ))?;
    archive.directory("modules");
    let store = world::kernel_store()?;
    let kernel = fs_err::read_dir(&store)?
        .flatten()
        .map(|entry| entry.path().join("modules/kernel"))
        .find(|path| path.is_dir())
        .context("a kernel with modules")?;
    for module in MODULES {
        // What is built into the kernel has no file.
        if let Ok(bytes) = fs_err::read(kernel.join(module)) {
            let name = module.rsplit('/').next().unwrap_or(module);
            archive.file(&format!("modules/{name}"), &bytes);
        }
    }
    let mut path = String::new();
    for part in PLACE.trim_start_matches('/').split('/') {
        path = format!("{path}{part}");
        archive.directory(&path);
        path.push('/');
    }
    for (name, bytes) in kit.files()? {
        archive.file(&format!("{path}{name}"), &bytes);
    }
    Ok(archive.finish())
}
