//! What is kept: the kinds of state files and their fields.

use std::net::Ipv4Addr;

use hostel_model::{DistroId, DistroName};
use serde::{Deserialize, Serialize};

use super::{FirewallRules, NetworkKind, PortRules, Setting, StateFile};

/// A step between two formats of a state file.
type Migration = fn(&mut serde_json::Map<String, serde_json::Value>);

/// `registry.json`: what belongs to no single distribution. Can be made again from nothing but the distributions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RegistryFile {
    /// The default distribution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<DistroId>,
    /// The recorded network (NAT-4), in the form that the network crate writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<serde_json::Value>,
    /// Who may open connections to the guest from elsewhere than the host.
    #[serde(default, skip_serializing_if = "Setting::is_default")]
    pub firewall: Setting<FirewallRules>,
    /// Which listeners appear on the host, and where.
    #[serde(default, skip_serializing_if = "Setting::is_default")]
    pub port_rules: Setting<PortRules>,
    /// Why the VM runs without KVM from now on, remembered after a boot under KVM that never answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm_failed: Option<String>,
    /// The release of the kernel to boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

impl RegistryFile {
    /// Says what of the file cannot be used, and what holds instead.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(why) = self.firewall.problem() {
            problems.push(format!(
                "the rules of the firewall in registry.json cannot be used ({why}); nothing is let in until they are set anew: hostel net firewall"
            ));
        }
        if let Some(why) = self.port_rules.problem() {
            problems.push(format!(
                "the rules of the relay in registry.json cannot be used ({why}); none holds until they are set anew: hostel ports"
            ));
        }
        problems
    }
}

impl StateFile for RegistryFile {
    const FORMAT: u32 = 1;
    const MIGRATIONS: &'static [Migration] = &[];
}

/// What `/etc/os-release` said (IMG-3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsInfo {
    /// `ID`.
    #[serde(default)]
    pub id: String,
    /// `VERSION_ID`.
    #[serde(default)]
    pub version: String,
    /// `PRETTY_NAME`.
    #[serde(default)]
    pub pretty_name: String,
}

/// `distros/<id>/distro.json`: one registered distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistroFile {
    /// Its id, also the name of its directory.
    pub id: DistroId,
    /// Its name.
    pub name: DistroName,
    /// When it was registered, in nanoseconds since 1970; gives the order of lists.
    pub created_unix_ns: u64,
    /// 2: runs in the VM.
    pub version: u32,
    /// SHA-256 of the archive its base image was made from, in hex: the name of the base.
    pub base: String,
    /// What the operating system called itself when last seen.
    #[serde(default)]
    pub os: OsInfo,
    /// The registered default user; empty: root. wsl.conf's `[user] default` beats it (CLI-35).
    #[serde(default)]
    pub default_user: String,
    /// What it was made from, for people.
    #[serde(default)]
    pub source: String,
    /// The size of its file system, in bytes.
    pub disk_limit: u64,
    /// How it is on the network.
    #[serde(default, skip_serializing_if = "Setting::is_default")]
    pub network: Setting<NetworkKind>,
    /// Its address when it has a network of its own; kept when it goes back to the shared one.
    #[serde(default, skip_serializing_if = "Setting::is_default")]
    pub address: Setting<Option<Ipv4Addr>>,
}

impl DistroFile {
    /// Says what of the record cannot be used, and what holds instead.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(why) = self.network.problem() {
            problems.push(format!(
                "distribution `{}`: its setting `network` is not shared, own or isolated ({why}); it shares the VM's network until that is set: hostel manage {} --network shared|own|isolated",
                self.name, self.name
            ));
        }
        if let Some(why) = self.address.problem() {
            problems.push(format!(
                "distribution `{}`: its setting `address` cannot be used ({why}); another one is chosen",
                self.name
            ));
        }
        problems
    }
}

impl StateFile for DistroFile {
    const FORMAT: u32 = 1;
    const MIGRATIONS: &'static [Migration] = &[];
}

/// `bases/<sha256>.json`: a complete base image. The image without this file is unfinished.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BaseFile {
    /// What the operating system called itself.
    #[serde(default)]
    pub os: OsInfo,
    /// The size of the archive it was made from, in bytes.
    pub archive_bytes: u64,
    /// The size of its file system, in bytes.
    pub size: u64,
}

impl StateFile for BaseFile {
    const FORMAT: u32 = 1;
    const MIGRATIONS: &'static [Migration] = &[];
}
