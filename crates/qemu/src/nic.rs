//! The network card and what stands behind it: one description for the command line and for plugging while the VM runs.

use serde_json::{Map, Value, json};

/// What the card is.
pub(crate) const DRIVER: &str = "virtio-net-pci";
/// Its id.
pub(crate) const NIC_ID: &str = "nic0";
/// The root port it sits on: devices on the root bus itself cannot be replaced.
pub(crate) const PORT_ID: &str = "rpnet";
/// What is behind it.
pub(crate) const NETDEV_ID: &str = "net0";
/// The filter for what the guest sends, and its two sockets.
pub(crate) const FILTER_ID: &str = "filter0";
pub(crate) const FILTER_SOCKETS: [&str; 2] = ["filter-out", "filter-back"];

/// What stands behind the network card.
///
/// A filter's descriptors are two connected stream sockets, which come after the others: first the one that QEMU writes
/// frames to, then the one that it reads them back from, in the form of [`Netdev::Stream`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Netdev {
    /// QEMU's user-mode network (libslirp).
    User {
        /// The subnet, `172.19.128.0/20`.
        net: String,
        /// The gateway's address.
        host: String,
        /// The first address DHCP gives: the guest's, should it ask.
        dhcpstart: String,
        /// The address of the built-in resolver; must differ from `host`.
        dns: String,
        /// IPv6, if the guest gets it as well.
        ipv6: Option<UserIpv6>,
        /// What the guest sends takes a way through a filter: two more descriptors.
        filtered: bool,
    },
    /// A tap: one descriptor. Whether its frames have a virtio-net header, and so the offloads, QEMU asks the tap.
    Tap,
    /// A connected stream socket: one descriptor; each frame after its length, four bytes, big-endian.
    Stream {
        /// What the guest sends takes a way through a filter: two more descriptors.
        filtered: bool,
    },
}

/// IPv6 of the user-mode network.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UserIpv6 {
    /// The first address of its /64, `fd00:1234:5678::`.
    pub prefix: String,
    /// The gateway's address.
    pub host: String,
}

/// The network card.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Nic {
    /// `52:54:00:…`
    pub mac: String,
    /// What it is connected to.
    pub netdev: Netdev,
}

impl Netdev {
    /// Returns how many descriptors it takes.
    pub fn descriptors(&self) -> usize {
        self.own_descriptors() + usize::from(self.filtered()) * FILTER_SOCKETS.len()
    }

    /// Returns how many of them are not a filter's.
    pub(crate) fn own_descriptors(&self) -> usize {
        match self {
            Self::User { .. } => 0,
            Self::Tap | Self::Stream { .. } => 1,
        }
    }

    /// Tells whether there is a filter.
    pub(crate) fn filtered(&self) -> bool {
        matches!(
            self,
            Self::User { filtered: true, .. } | Self::Stream { filtered: true }
        )
    }

    /// Returns QEMU's type and the properties, dots in names standing for objects in objects. `fds` are the names or numbers
    /// under which QEMU knows the descriptors.
    pub(crate) fn properties(&self, fds: &[String]) -> (&'static str, Vec<(&'static str, Value)>) {
        let fd = || json!(fds.first().map_or("", String::as_str));
        match self {
            Self::User {
                net,
                host,
                dhcpstart,
                dns,
                ipv6,
                filtered: _,
            } => {
                let mut list = vec![
                    // Naming ipv6 alone would switch IPv4 off.
                    ("ipv4", json!(true)),
                    ("ipv6", json!(ipv6.is_some())),
                    ("net", json!(net)),
                    ("host", json!(host)),
                    ("dhcpstart", json!(dhcpstart)),
                    ("dns", json!(dns)),
                ];
                if let Some(ipv6) = ipv6 {
                    // `ipv6-net` has both in one, and is for the command line only.
                    list.push(("ipv6-prefix", json!(ipv6.prefix)));
                    list.push(("ipv6-prefixlen", json!(64)));
                    list.push(("ipv6-host", json!(ipv6.host)));
                }
                ("user", list)
            }
            Self::Tap => ("tap", vec![("fd", fd())]),
            Self::Stream { .. } => (
                "stream",
                vec![("addr.type", json!("fd")), ("addr.str", fd())],
            ),
        }
    }

    /// Returns the arguments of `netdev_add`.
    pub(crate) fn arguments(&self, fds: &[String]) -> Value {
        let (kind, properties) = self.properties(fds);
        let mut arguments = Map::new();
        arguments.insert("type".into(), json!(kind));
        arguments.insert("id".into(), json!(NETDEV_ID));
        for (key, value) in properties {
            match key.split_once('.') {
                Some((object, key)) => arguments.entry(object).or_insert(json!({}))[key] = value,
                None => drop(arguments.insert(key.into(), value)),
            }
        }
        Value::Object(arguments)
    }
}

/// Returns the properties of the filter.
pub(crate) fn filter() -> [(&'static str, &'static str); 4] {
    [
        ("netdev", NETDEV_ID),
        // What the netdev receives from the card.
        ("queue", "rx"),
        ("outdev", FILTER_SOCKETS[0]),
        ("indev", FILTER_SOCKETS[1]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netdev_is_described_to_the_monitor() {
        let fds = ["nic-fd-0".to_owned()];
        assert_eq!(
            Netdev::Stream { filtered: true }.arguments(&fds),
            json!({ "type": "stream", "id": "net0", "addr": { "type": "fd", "str": "nic-fd-0" } })
        );
        assert_eq!(
            Netdev::Tap.arguments(&fds),
            json!({ "type": "tap", "id": "net0", "fd": "nic-fd-0" })
        );
        let user = Netdev::User {
            net: "172.19.128.0/20".into(),
            host: "172.19.128.1".into(),
            dhcpstart: "172.19.132.144".into(),
            dns: "172.19.128.53".into(),
            ipv6: Some(UserIpv6 {
                prefix: "fd00::".into(),
                host: "fd00::1".into(),
            }),
            filtered: true,
        };
        assert_eq!(user.descriptors(), 2);
        assert_eq!(Netdev::Stream { filtered: true }.descriptors(), 3);
        assert_eq!(
            user.arguments(&[]),
            json!({
                "type": "user", "id": "net0", "ipv4": true, "ipv6": true, "net": "172.19.128.0/20", "host": "172.19.128.1",
                "dhcpstart": "172.19.132.144", "dns": "172.19.128.53", "ipv6-prefix": "fd00::",
                "ipv6-prefixlen": 64, "ipv6-host": "fd00::1"
            })
        );
    }
}
