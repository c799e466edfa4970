//! What the configuration says about the network, in the form in which it is used; and what of it cannot be done.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use hostel_model::firewall::{Action, Protocol, Rule};
use hostel_switch::{Kind, MacAddress};
use hostel_wslconf::{HostNames, Ipv6, MachineConf, NetworkBackend, NetworkingMode};

use crate::state::{Placement, PortRule, RegistryFile, Transport};

/// How the VM is connected (NET-5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Not at all.
    None,
    /// A network of its own behind the host's address.
    #[default]
    Nat,
    /// The same through a network stack in a process of the user.
    Consomme,
}

impl Mode {
    /// Returns the name that the reference shows.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Nat => "nat",
            Self::Consomme => "consomme",
        }
    }
}

/// Who answers the guest's questions for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsMode {
    /// The host's resolver, over the channel; the guest asks this address of its own `lo` (DNS-1).
    Tunnel(Ipv4Addr),
    /// The gateway (DNS-3).
    Proxy,
    /// The host's own servers (DNS-4).
    Host,
}

impl Default for DnsMode {
    fn default() -> Self {
        Self::Tunnel(Ipv4Addr::new(10, 255, 255, 254))
    }
}

/// What holds for the network of one VM, from its start to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSettings {
    /// How it is connected.
    pub mode: Mode,
    /// Exactly this backend; `None`: the best that works.
    pub kind: Option<Kind>,
    /// Who answers questions for names.
    pub dns: DnsMode,
    /// Whether ports of the guest appear on the host.
    pub forwarding: bool,
    /// Ports that never do.
    pub ignored_ports: Vec<u16>,
    /// Where on the host, beside its loopback.
    pub listen: Vec<IpAddr>,
    /// UDP ports that do.
    pub udp_ports: Vec<u16>,
    /// Whether services on the host's loopback are open to the guest.
    pub host_loopback: bool,
    /// Whether it gets IPv6 addresses; `None`: when the host has one.
    pub ipv6: Option<bool>,
    /// The card's address, when somebody set one.
    pub mac: Option<MacAddress>,
    /// Whether the firewall filters at all.
    pub firewall: bool,
    /// How the host learns the names of the distributions.
    pub host_names: HostNames,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self::of(&MachineConf::default()).0
    }
}

impl NetworkSettings {
    /// Takes what a configuration says; with what of it is done differently, for the user.
    pub fn of(conf: &MachineConf) -> (Self, Vec<String>) {
        let (wsl2, ours) = (&conf.wsl2, &conf.hostel);
        let (mode, mut warnings) = conf.networking();
        let mode = match mode {
            NetworkingMode::None => Mode::None,
            NetworkingMode::Consomme => Mode::Consomme,
            // The others have fallen back to it.
            NetworkingMode::Nat | NetworkingMode::Mirrored | NetworkingMode::Bridged => Mode::Nat,
        };
        let mut kind = match ours.network {
            NetworkBackend::Auto => None,
            NetworkBackend::Root => Some(Kind::Root),
            NetworkBackend::Rootless => Some(Kind::Rootless),
            NetworkBackend::Passt => Some(Kind::Passt),
            NetworkBackend::Slirp => Some(Kind::Slirp),
        };
        if mode == Mode::Consomme && matches!(kind, Some(Kind::Root | Kind::Rootless)) {
            kind = None;
        }
        let mac = wsl2.mac_address.and_then(|wanted| {
            let parsed = wanted.to_string().parse();
            if parsed.is_err() {
                warnings.push(format!(
                    "the setting `macAddress={wanted}` is not followed: it is not the locally administered address of one card, such as 52:54:00:12:34:56"
                ));
            }
            parsed.ok()
        });
        let settings = Self {
            mode,
            kind,
            dns: match (mode, wsl2.dns_tunneling, wsl2.dns_proxy) {
                (_, true, _) => DnsMode::Tunnel(conf.experimental.dns_tunneling_ip_address),
                (_, false, true) => DnsMode::Proxy,
                (_, false, false) => DnsMode::Host,
            },
            forwarding: wsl2.localhost_forwarding,
            ignored_ports: conf.experimental.ignored_ports.clone(),
            listen: ours.relay_listen.clone(),
            udp_ports: ours.udp_ports.clone(),
            host_loopback: conf.experimental.host_address_loopback,
            ipv6: match (ours.ipv6, wsl2.ipv6) {
                (Ipv6::On, _) | (Ipv6::Auto, true) => Some(true),
                (Ipv6::Off, _) => Some(false),
                (Ipv6::Auto, false) => None,
            },
            mac,
            firewall: wsl2.firewall,
            host_names: ours.host_names,
        };
        (settings, warnings)
    }

    /// Returns the rules of the firewall that hold with these settings.
    pub fn firewall_rules(&self, file: &RegistryFile) -> Vec<Rule> {
        if self.firewall {
            return file.firewall.get().into();
        }
        vec![Rule {
            action: Action::Allow,
            protocol: Protocol::Any,
            ports: None,
            source: None,
        }]
    }

    /// Returns what the relay is told. `direct` is the VM's address where the host's own processes reach it.
    pub(crate) fn relay(
        &self,
        file: &RegistryFile,
        direct: Option<IpAddr>,
    ) -> hostel_relay::Settings {
        hostel_relay::Settings {
            forwarding: self.forwarding,
            listen: self.listen.clone(),
            ignored_ports: self.ignored_ports.clone(),
            rules: self.port_rules(file),
            firewall: self.firewall_rules(file),
            direct,
        }
    }

    /// Returns the addresses of the relay that others than this host can reach.
    pub(crate) fn exposed(&self) -> Vec<IpAddr> {
        self.listen
            .iter()
            .copied()
            .filter(|a| !a.is_loopback())
            .collect()
    }

    /// Returns the rules that are kept, and one for each UDP port of the configuration: UDP appears by rules only.
    fn port_rules(&self, file: &RegistryFile) -> Vec<hostel_relay::PortRule> {
        let mut rules: Vec<hostel_relay::PortRule> =
            file.port_rules.get().rules().iter().map(rule).collect();
        let ruled: BTreeSet<u16> = rules
            .iter()
            .filter(|r| r.distro.is_none() && r.protocol == hostel_relay::Protocol::Udp)
            .filter_map(|r| r.port)
            .collect();
        let more = self.udp_ports.iter().filter(|p| !ruled.contains(p));
        rules.extend(more.map(|port| hostel_relay::PortRule {
            distro: None,
            port: Some(*port),
            protocol: hostel_relay::Protocol::Udp,
            action: hostel_relay::RuleAction::Same,
        }));
        rules
    }

    /// Returns the UDP ports that the guest is to tell of.
    pub(crate) fn udp_watched(&self, file: &RegistryFile) -> BTreeSet<u16> {
        let mut ports: BTreeSet<u16> = self.udp_ports.iter().copied().collect();
        for rule in file.port_rules.get().rules() {
            match (rule.protocol, rule.action, rule.port) {
                (Transport::Tcp, _, _) | (Transport::Udp, Placement::Off, _) => {}
                (Transport::Udp, Placement::Same | Placement::Remap, 0) => {
                    ports.extend(1..=u16::MAX);
                }
                (Transport::Udp, Placement::Same | Placement::Remap, port) => {
                    ports.insert(port);
                }
            }
        }
        ports
    }
}

fn rule(rule: &PortRule) -> hostel_relay::PortRule {
    let some = |port: u16| (port > 0).then_some(port);
    hostel_relay::PortRule {
        distro: rule.distro,
        port: some(rule.port),
        protocol: protocol(rule.protocol),
        action: match rule.action {
            Placement::Same => hostel_relay::RuleAction::Same,
            Placement::Remap => hostel_relay::RuleAction::Remap(some(rule.host_port)),
            Placement::Off => hostel_relay::RuleAction::Off,
        },
    }
}

fn protocol(transport: Transport) -> hostel_relay::Protocol {
    match transport {
        Transport::Tcp => hostel_relay::Protocol::Tcp,
        Transport::Udp => hostel_relay::Protocol::Udp,
    }
}

#[cfg(test)]
mod tests {
    use hostel_wslconf::FileKind;

    use super::*;

    fn read(text: &str) -> (NetworkSettings, Vec<String>) {
        NetworkSettings::of(&MachineConf::parse(text, FileKind::HostelConf).0)
    }

    /// NET-3, issue point 11: nothing is silently ignored.
    #[test]
    fn modes_that_are_not_there_fall_back_to_nat_and_say_so() {
        for (text, mode, warned) in [
            ("", Mode::Nat, None),
            ("[wsl2]\nnetworkingMode=nat", Mode::Nat, None),
            ("[wsl2]\nnetworkingMode=none", Mode::None, None),
            ("[wsl2]\nnetworkingMode=virtioproxy", Mode::Consomme, None),
            (
                "[wsl2]\nnetworkingMode=mirrored",
                Mode::Nat,
                Some("mirrored"),
            ),
            ("[wsl2]\nnetworkingMode=bridged", Mode::Nat, Some("bridged")),
        ] {
            let (settings, warnings) = read(text);
            assert_eq!(settings.mode, mode, "{text}");
            assert_eq!(!warnings.is_empty(), warned.is_some(), "{text}");
            if let Some(word) = warned {
                assert!(
                    warnings[0].contains(word) && warnings[0].contains("falling back to `nat`")
                );
            }
        }
    }

    #[test]
    fn a_user_mode_stack_never_becomes_a_bridge() {
        let (settings, warnings) =
            read("[wsl2]\nnetworkingMode=virtioproxy\n[hostel]\nnetwork=root");
        assert_eq!((settings.mode, settings.kind), (Mode::Consomme, None));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let (settings, _) = read("[hostel]\nnetwork=passt");
        assert_eq!(settings.kind, Some(Kind::Passt));
    }

    /// DNS-1, DNS-3, DNS-4.
    #[test]
    fn names_are_asked_for_where_the_keys_say() {
        for (text, want) in [
            ("", DnsMode::default()),
            (
                "[experimental]\ndnsTunnelingIpAddress=10.255.255.1",
                DnsMode::Tunnel(Ipv4Addr::new(10, 255, 255, 1)),
            ),
            ("[wsl2]\ndnsTunneling=false", DnsMode::Proxy),
            ("[wsl2]\ndnsTunneling=false\ndnsProxy=false", DnsMode::Host),
        ] {
            assert_eq!(read(text).0.dns, want, "{text}");
        }
    }

    #[test]
    fn without_the_firewall_everything_is_let_in() {
        let file = RegistryFile::default();
        assert!(read("").0.firewall_rules(&file).is_empty());
        let rules = read("[wsl2]\nfirewall=false").0.firewall_rules(&file);
        assert_eq!((rules.len(), rules[0].action), (1, Action::Allow));
    }

    #[test]
    fn a_card_address_of_a_maker_is_told_and_left() {
        let (settings, warnings) = read("[wsl2]\nmacAddress=00:15:5d:01:02:03");
        assert_eq!(settings.mac, None);
        assert!(warnings[0].contains("00:15:5d:01:02:03"), "{warnings:?}");
        let (settings, warnings) = read("[wsl2]\nmacAddress=52:54:5d:01:02:03");
        assert!(settings.mac.is_some() && warnings.is_empty());
    }

    #[test]
    fn rules_of_the_relay_are_handed_over() {
        let rules = vec![
            PortRule {
                distro: None,
                protocol: Transport::Udp,
                port: 53,
                action: Placement::Off,
                host_port: 0,
            },
            PortRule {
                distro: None,
                protocol: Transport::Tcp,
                port: 80,
                action: Placement::Remap,
                host_port: 8080,
            },
        ];
        let file = RegistryFile {
            port_rules: crate::state::PortRules::try_from(rules).unwrap().into(),
            ..RegistryFile::default()
        };
        let relay = read("[hostel]\nrelayListen=0.0.0.0\nudpPorts=53,67-69").0;
        assert_eq!(relay.exposed().len(), 1);
        // UDP appears by rules only; the one that is kept goes before the configuration's.
        let watched: Vec<u16> = relay.udp_watched(&file).into_iter().collect();
        assert_eq!(watched, [53, 67, 68, 69]);
        let relay = relay.relay(&file, None);
        assert_eq!(relay.rules[0].protocol, hostel_relay::Protocol::Udp);
        assert_eq!(
            relay.rules[1].action,
            hostel_relay::RuleAction::Remap(Some(8080))
        );
        let more: Vec<_> = relay.rules[2..].iter().filter_map(|r| r.port).collect();
        assert_eq!(more, [67, 68, 69]);
    }
}
