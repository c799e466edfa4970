//! The network: the values of its keys, and what of them is done differently.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
};

use serde::Serialize;

use crate::{
    HostelSection, MachineConf,
    value::{Values, items, port, word},
};

/// How the VM is connected to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkBackend {
    /// The first of the others, in their order, that works.
    #[default]
    Auto,
    /// A bridge and a tap on the host.
    Root,
    /// The same in a namespace of the user's own, with pasta as the way out.
    Rootless,
    /// A passt process.
    Passt,
    /// QEMU's own user-mode network.
    Slirp,
}

/// Whether the VM gets IPv6 addresses beyond link-local ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ipv6 {
    /// When the host has a global address itself.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How the host itself learns the names of the distributions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostNames {
    /// Not at all.
    #[default]
    Off,
    /// systemd-resolved asks the gateway for them.
    Resolved,
    /// They stand in the host's `/etc/hosts`.
    Hosts,
}

/// How the machine is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkingMode {
    /// Not at all.
    None,
    /// A network of its own behind the host's address.
    #[default]
    Nat,
    /// On the host's own network.
    Bridged,
    /// With the host's addresses.
    Mirrored,
    /// Through a network stack in a host process.
    Consomme,
}

impl MachineConf {
    /// Returns how the VM is to be connected (NET-5), one of `none`, `nat` and `consomme`, and what of the network's keys
    /// is not followed and why, a sentence each: nothing is passed over in silence.
    pub fn networking(&self) -> (NetworkingMode, Vec<String>) {
        use NetworkingMode::{Bridged, Consomme, Mirrored, Nat, None};
        let (wsl2, mut notes) = (&self.wsl2, Vec::new());
        let mut note = |text: &str| notes.push(text.to_owned());
        let mode = match wsl2.networking_mode {
            _ if wsl2.safe_mode => {
                if wsl2.networking_mode != None {
                    note("`safeMode` is on: the VM has no network");
                }
                None
            }
            // NET-3, in the order of the reference's reasons.
            Mirrored => {
                note(
                    "mirrored networking mode is not supported: the VM cannot take the host's own addresses; \
                     falling back to `nat` networking",
                );
                Nat
            }
            Bridged => {
                note(
                    "bridged networking mode is not supported: the VM never joins a network of the host; \
                     falling back to `nat` networking",
                );
                Nat
            }
            Consomme if !wsl2.virtio => {
                note(
                    "networking mode `consomme` needs `virtio`, which is off; falling back to `nat` networking",
                );
                Nat
            }
            mode @ (None | Nat | Consomme) => mode,
        };
        if let Some(switch) = &wsl2.vm_switch {
            note(&format!(
                "`vmSwitch={}` is not followed: the VM has a switch of its own",
                crate::warning::shown(switch)
            ));
        }
        if wsl2.networking_mode == Bridged && wsl2.dhcp {
            note("`dhcp` is not followed: the VM's address is recorded and never asked for");
        }
        if wsl2.networking_mode == Mirrored && !wsl2.localhost_forwarding {
            note(
                "`localhostForwarding=false` has no effect in mirrored networking mode; \
                 in the `nat` networking that is used instead it is followed",
            );
        }
        let ours = &self.hostel;
        let user_mode = matches!(ours.network, NetworkBackend::Passt | NetworkBackend::Slirp);
        if mode == Consomme && ours.network != NetworkBackend::Auto && !user_mode {
            note(
                "`network=root` and `network=rootless` do not go with networking mode `consomme`, which is a network \
                 stack in a process; passt or slirp is used",
            );
        }
        if mode == None && ours.host_names != HostNames::Off {
            note("`hostNames` is not followed: without a network nothing has an address");
        }
        (mode, notes)
    }
}

pub(crate) fn mode(text: &str) -> Result<NetworkingMode, String> {
    use NetworkingMode::{Bridged, Consomme, Mirrored, Nat, None};
    let modes = [
        ("none", None),
        ("nat", Nat),
        ("bridged", Bridged),
        ("mirrored", Mirrored),
    ];
    let alias = [("consomme", Consomme), ("virtioproxy", Consomme)];
    word(text, &[&modes[..], &alias[..]].concat())
}

/// The keys of `[hostel]` about the network.
pub(crate) fn read(v: &mut Values, hostel: &mut HostelSection) {
    let network = |text: &str| {
        use NetworkBackend::{Auto, Passt, Root, Rootless, Slirp};
        let words = [
            ("auto", Auto),
            ("root", Root),
            ("rootless", Rootless),
            ("passt", Passt),
            ("slirp", Slirp),
        ];
        word(text, &words)
    };
    v.set(&mut hostel.network, "hostel.network", network);
    let ipv6 = |text: &str| {
        let words = [("auto", Ipv6::Auto), ("on", Ipv6::On), ("off", Ipv6::Off)];
        word(text, &words)
    };
    v.set(&mut hostel.ipv6, "hostel.ipv6", ipv6);
    if let Some(addresses) = items(v, "hostel.relayListen", listen_address) {
        hostel.relay_listen = addresses;
    }
    let mut ports: Vec<u16> = items(v, "hostel.udpPorts", ports)
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    ports.sort_unstable();
    ports.dedup();
    hostel.udp_ports = ports;
    let host_names = |text: &str| {
        use HostNames::{Hosts, Off, Resolved};
        word(
            text,
            &[("off", Off), ("resolved", Resolved), ("hosts", Hosts)],
        )
    };
    v.set(&mut hostel.host_names, "hostel.hostNames", host_names);
}

/// A port, or a first and a last one with `-` between them.
fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first.trim())?, port(last.trim())?);
    if first > last {
        return Err("a range begins with the lower port".to_owned());
    }
    Ok(first..=last)
}

fn listen_address(text: &str) -> Result<IpAddr, String> {
    let address: Result<IpAddr, _> = text.parse();
    address
        .ok()
        .filter(|address| !address.is_multicast() && *address != IpAddr::V4(Ipv4Addr::BROADCAST))
        .ok_or_else(|| "it is an address of this host, such as `127.0.0.1` or `::1`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileKind;

    fn conf(text: &str) -> (MachineConf, Vec<String>) {
        let (conf, warnings) = MachineConf::parse(text, FileKind::HostelConf);
        (conf, warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn our_keys_are_read() {
        let (conf, warnings) = conf(
            "[hostel]\nnetwork=Rootless\nipv6=ON\nrelayListen=127.0.0.1, 192.168.1.5 ,::\nudpPorts=5353, 4000-4002,4001\n\
             hostNames=resolved\n",
        );
        assert_eq!(warnings, [""; 0]);
        let ours = conf.hostel;
        assert_eq!(
            (ours.network, ours.ipv6, ours.host_names),
            (NetworkBackend::Rootless, Ipv6::On, HostNames::Resolved)
        );
        let listen: Vec<String> = ours.relay_listen.iter().map(ToString::to_string).collect();
        assert_eq!(listen, ["127.0.0.1", "192.168.1.5", "::"]);
        assert_eq!(ours.udp_ports, [4000, 4001, 4002, 5353]);
        for (word, want) in [
            ("auto", NetworkBackend::Auto),
            ("root", NetworkBackend::Root),
            ("passt", NetworkBackend::Passt),
            ("slirp", NetworkBackend::Slirp),
        ] {
            let (conf, _) = super::tests::conf(&format!("[hostel]\nnetwork={word}\n"));
            assert_eq!(conf.hostel.network, want);
        }
    }

    #[test]
    fn mistakes_in_our_keys_leave_the_defaults() {
        let (conf, warnings) = conf(
            "[hostel]\nnetwork=bridge\nipv6=yes\nrelayListen=localhost,224.0.0.1\nudpPorts=0,9-8,1-,70000,53\nhostNames=on\n",
        );
        let want = HostelSection {
            udp_ports: vec![53],
            ..HostelSection::default()
        };
        assert_eq!(conf.hostel, want);
        let lines: Vec<&str> = warnings
            .iter()
            .map(|w| w.split(':').next().unwrap())
            .collect();
        assert_eq!(
            lines,
            ["2", "3", "4", "4", "5", "5", "5", "5", "6"],
            "{warnings:#?}"
        );
        assert!(warnings[5].contains("begins with the lower port"));
        // An empty list is a list.
        let (none, warnings) = super::tests::conf("[hostel]\nrelayListen=\n");
        assert_eq!((none.hostel.relay_listen.len(), warnings.len()), (0, 0));
    }

    /// NET-3, NET-5 and 6.6: what cannot be done is told, and the VM still has a network.
    #[test]
    fn what_is_not_followed_is_told() {
        use NetworkingMode::{Consomme, Nat, None};
        for (text, mode, words) in [
            ("", Nat, &[][..]),
            ("networkingMode=nat", Nat, &[]),
            ("networkingMode=none", None, &[]),
            ("networkingMode=VirtioProxy", Consomme, &[]),
            (
                "networkingMode=consomme\nvirtio=false",
                Nat,
                &["needs `virtio`"],
            ),
            ("networkingMode=mirrored", Nat, &["mirrored"]),
            (
                "networkingMode=mirrored\nlocalhostForwarding=false",
                Nat,
                &["mirrored", "no effect in mirrored"],
            ),
            (
                "networkingMode=bridged\nvmSwitch=a\u{7}",
                Nat,
                &["bridged", "vmSwitch=a\\u{7}", "dhcp"],
            ),
            ("networkingMode=bridged\ndhcp=false", Nat, &["bridged"]),
            ("safeMode=true", None, &["safeMode"]),
            ("safeMode=true\nnetworkingMode=none", None, &[]),
            (
                "networkingMode=virtioproxy\n[hostel]\nnetwork=root",
                Consomme,
                &["network=root"],
            ),
            (
                "networkingMode=virtioproxy\n[hostel]\nnetwork=slirp",
                Consomme,
                &[],
            ),
            (
                "networkingMode=none\n[hostel]\nhostNames=hosts",
                None,
                &["hostNames"],
            ),
        ] {
            let (conf, warnings) = conf(&format!("[wsl2]\n{text}\n"));
            assert_eq!(warnings, [""; 0], "{text}");
            let (got, notes) = conf.networking();
            assert_eq!((got, notes.len()), (mode, words.len()), "{text}: {notes:?}");
            for (note, word) in notes.iter().zip(words) {
                assert!(note.contains(word), "{note}");
            }
        }
    }

    /// Spec 3: an address that no guest could ask turns tunneling off.
    #[test]
    fn a_bad_address_turns_tunneling_off() {
        for (text, on) in [
            ("10.0.0.1", true),
            ("127.0.0.53", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("x", false),
        ] {
            let (conf, warnings) = conf(&format!(
                "[wsl2]\ndnsTunneling=true\n[experimental]\ndnsTunnelingIpAddress={text}\n"
            ));
            assert_eq!(
                (conf.wsl2.dns_tunneling, warnings.is_empty()),
                (on, on),
                "{text}"
            );
        }
    }
}
