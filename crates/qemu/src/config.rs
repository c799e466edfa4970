//! Everything that makes one VM what it is, in one value that can be stored, compared and hashed.

use std::{fmt, path::PathBuf};

use hostel_model::Bytes;
use sha2::{Digest as _, Sha256};

use crate::{
    accel::Accel,
    nic::Nic,
    probe::{QemuBinary, Version},
};

/// How many spare root ports a machine has at most; each costs the guest a little time to find.
pub const MAX_SPARE_PORTS: u8 = 12;

/// A file the machine is booted from, with its content.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BootFile {
    /// Where it is.
    pub path: PathBuf,
    /// SHA-256 of its content, in hex.
    pub sha256: String,
}

/// The QEMU the machine was made for. Device features differ between versions, so it is a part of the machine.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct QemuIdentity {
    /// The program.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
    /// Whether its system call filter is used.
    pub sandbox: bool,
    /// qboot; QEMU's own choice, SeaBIOS, without it.
    pub firmware: Option<PathBuf>,
}

/// One VM. Two machines with equal values are interchangeable; [`MachineConfig::config_hash`] tells.
///
/// Not in here, because they change from start to start: descriptors, log paths, disks, and the devices plugged later.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MachineConfig {
    /// Grows when the command line made of these values changes its meaning.
    pub layout: u32,
    /// Who runs it.
    pub qemu: QemuIdentity,
    /// Full versioned machine type, never an alias.
    pub machine: String,
    /// KVM or TCG.
    pub accel: Accel,
    /// Processor model.
    pub cpu: String,
    /// Memory, a multiple of 2 MiB.
    pub memory: Bytes,
    /// Virtual processors.
    pub cpus: u32,
    /// `vmlinux` with a PVH entry, or a bzImage.
    pub kernel: BootFile,
    /// The boot image.
    pub initramfs: BootFile,
    /// Kernel command line.
    pub append: String,
    /// The network card, if any.
    pub nic: Option<Nic>,
    /// Root ports for devices that are plugged later.
    pub spare_ports: u8,
}

/// Why a configuration is not one of a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The memory size is not usable.
    #[error("the VM cannot have {0} of memory; it must be a multiple of 2 MiB, at least 64 MiB")]
    Memory(Bytes),
    /// No processor, or more than the machine type takes.
    #[error("the VM cannot have {0} processors; 1 to 255 are possible")]
    Cpus(u32),
    /// Outside 1 to [`MAX_SPARE_PORTS`].
    #[error("the VM cannot have {0} spare ports; 1 to {MAX_SPARE_PORTS} are possible")]
    SparePorts(u8),
    /// Longer than x86 takes, or of several lines.
    #[error("the kernel command line must be one line of at most 2,000 bytes; it has {0}")]
    Append(usize),
    /// Not `xx:xx:xx:xx:xx:xx` of a single machine.
    #[error("`{0}` is not the address of a network card")]
    Mac(String),
    /// QEMU's own files and the boot files must have names that can be written down.
    #[error("the path `{0}` is not UTF-8")]
    Path(PathBuf),
    /// An alias, which means another machine with every QEMU.
    #[error("`{0}` is not a versioned machine type")]
    Machine(String),
}

/// The present value of [`MachineConfig::layout`].
const LAYOUT: u32 = 3;

impl MachineConfig {
    /// Describes a machine with what is usual: one processor, 1 GiB, six spare ports, no network.
    pub fn new(qemu: &QemuBinary, accel: Accel, kernel: BootFile, initramfs: BootFile) -> Self {
        Self {
            layout: LAYOUT,
            qemu: QemuIdentity {
                path: qemu.path.clone(),
                version: qemu.version,
                sandbox: qemu.sandbox,
                firmware: qemu.firmware.clone(),
            },
            machine: qemu.machine.clone(),
            accel,
            cpu: accel.cpu().to_owned(),
            memory: Bytes::gib(1),
            cpus: 1,
            kernel,
            initramfs,
            append: kernel_command_line(accel, ""),
            nic: None,
            spare_ports: 6,
        }
    }

    /// Checks what QEMU or the guest would refuse less clearly.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let versioned = self
            .machine
            .strip_prefix("pc-q35-")
            .is_some_and(|v| v.contains('.'));
        if !versioned
            || !self
                .machine
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        {
            return Err(ConfigError::Machine(self.machine.clone()));
        }
        if !self.memory.0.is_multiple_of(2 << 20) || self.memory < Bytes::mib(64) {
            return Err(ConfigError::Memory(self.memory));
        }
        if !(1..=255).contains(&self.cpus) {
            return Err(ConfigError::Cpus(self.cpus));
        }
        if !(1..=MAX_SPARE_PORTS).contains(&self.spare_ports) {
            return Err(ConfigError::SparePorts(self.spare_ports));
        }
        if self.append.len() > 2000 || self.append.contains(['\n', '\0']) {
            return Err(ConfigError::Append(self.append.len()));
        }
        let paths = [&self.qemu.path, &self.kernel.path, &self.initramfs.path];
        if let Some(path) = paths
            .into_iter()
            .chain(&self.qemu.firmware)
            .find(|path| path.to_str().is_none())
        {
            return Err(ConfigError::Path(path.clone()));
        }
        if let Some(nic) = &self.nic
            && !is_mac(&nic.mac)
        {
            return Err(ConfigError::Mac(nic.mac.clone()));
        }
        Ok(())
    }

    /// Returns a digest of the whole configuration: SHA-256 of its JSON with sorted keys.
    pub fn config_hash(&self) -> ConfigHash {
        // A `Value` keeps its keys sorted, whatever order the fields above are moved to. Only a path that is not UTF-8 has
        // no JSON; such a configuration is not valid, but it has a hash of its own too.
        let text = serde_json::to_value(self)
            .map_or_else(|_| format!("{self:?}"), |value| value.to_string());
        ConfigHash(Sha256::digest(text.as_bytes()).into())
    }
}

/// Digest of a [`MachineConfig`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConfigHash([u8; 32]);

impl fmt::Display for ConfigHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ConfigHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn is_mac(text: &str) -> bool {
    let mut parts = text.split(':');
    let ok = parts
        .by_ref()
        .take(6)
        .filter(|p| p.len() == 2 && u8::from_str_radix(p, 16).is_ok())
        .count()
        == 6;
    let single = text
        .get(..2)
        .and_then(|p| u8::from_str_radix(p, 16).ok())
        .is_some_and(|b| b & 1 == 0);
    ok && single && parts.next().is_none()
}

/// Returns the guest kernel's command line: what a light VM wants, then the caller's own parameters, which win.
pub fn kernel_command_line(accel: Accel, extra: &str) -> String {
    // The console, and an end instead of a hang.
    let mut line = String::from("console=ttyS0 panic=-1 quiet");
    // No self-tests, no waiting for entropy, no probing for hardware that is not there: 0.4 to 0.6 s of a start under TCG.
    line.push_str(" cryptomgr.notests random.trust_cpu=on no_timer_check 8250.nr_uarts=1");
    line.push_str(" i8042.noaux i8042.nokbd audit=0 nowatchdog");
    for parameter in accel.kernel_parameters() {
        line.push(' ');
        line.push_str(parameter);
    }
    let extra = extra.trim();
    if !extra.is_empty() {
        line.push(' ');
        line.push_str(extra);
    }
    line
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::nic::Netdev;

    pub(crate) fn example() -> MachineConfig {
        let qemu = QemuBinary {
            path: "/usr/bin/qemu-system-x86_64".into(),
            version: Version {
                major: 7,
                minor: 2,
                micro: 22,
            },
            machine: "pc-q35-7.2".into(),
            sandbox: true,
            firmware: Some("/usr/share/qemu/qboot.rom".into()),
        };
        let file = |name: &str| BootFile {
            path: format!("/boot/{name}").into(),
            sha256: "00".repeat(32),
        };
        let mut config = MachineConfig::new(&qemu, Accel::Tcg, file("vmlinux"), file("initramfs"));
        config.cpus = 2;
        config.spare_ports = 2;
        config.append = "quiet".into();
        config.nic = Some(Nic {
            mac: "52:54:00:12:34:56".into(),
            netdev: Netdev::User {
                net: "172.19.128.0/20".into(),
                host: "172.19.128.1".into(),
                dhcpstart: "172.19.132.144".into(),
                dns: "172.19.128.53".into(),
                ipv6: None,
                filtered: false,
            },
        });
        config
    }

    #[test]
    fn the_hash_follows_every_change_and_nothing_else() {
        let config = example();
        let hash = config.config_hash();
        assert_eq!(hash, config.clone().config_hash());
        assert_eq!(hash.to_string().len(), 64);
        let back: MachineConfig =
            serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(back.config_hash(), hash);
        let changes: [fn(&mut MachineConfig); 8] = [
            |c| c.cpus = 3,
            |c| c.append.push('x'),
            |c| c.qemu.version.micro += 1,
            |c| c.accel = Accel::Kvm,
            |c| c.kernel.sha256 = "11".repeat(32),
            |c| c.nic = None,
            |c| c.memory = Bytes::gib(2),
            |c| c.machine = "pc-q35-8.0".into(),
        ];
        for change in changes {
            let mut changed = config.clone();
            change(&mut changed);
            assert_ne!(changed.config_hash(), hash);
        }
    }

    #[test]
    fn impossible_machines_are_refused() {
        example().validate().unwrap();
        let changes: [fn(&mut MachineConfig); 11] = [
            |c| c.memory = Bytes::mib(513),
            |c| c.memory = Bytes::mib(32),
            |c| c.cpus = 0,
            |c| c.cpus = 256,
            |c| c.spare_ports = 0,
            |c| c.spare_ports = 13,
            |c| c.append = "a\nb".into(),
            |c| c.append = "x".repeat(2001),
            |c| c.machine = "q35".into(),
            |c| c.machine = "pc-q35-7.2,kernel=x".into(),
            |c| c.nic.as_mut().unwrap().mac = "53:54:00:12:34:56".into(),
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut config = example();
            change(&mut config);
            assert!(config.validate().is_err(), "change {i}");
        }
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "52:54:00:12:34:zz",
        ] {
            assert!(!is_mac(bad), "{bad}");
        }
    }
}
