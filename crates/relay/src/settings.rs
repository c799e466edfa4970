//! What the user decides about the relay, and the bounds that nobody does.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use hostel_model::{DistroId, firewall};

use crate::Protocol;

/// What a rule does with a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// It appears at its own port. A low port that the user may not take moves, as it does without a rule.
    Same,
    /// It appears at this port of the host, or at the next free one.
    Remap(Option<u16>),
    /// It does not appear.
    Off,
}

/// One rule: which listeners appear on the host, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRule {
    /// The distribution; `None`: every one.
    pub distro: Option<DistroId>,
    /// The port in the guest; `None`: every one.
    pub port: Option<u16>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// What to do.
    pub action: RuleAction,
}

/// What the user decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `localhostForwarding`; `false`: nothing of the guest appears on the host.
    pub forwarding: bool,
    /// Addresses of the host to listen on, beside 127.0.0.1 and ::1, which are always among them.
    pub listen: Vec<IpAddr>,
    /// `ignoredPorts`: ports of the guest that never appear.
    pub ignored_ports: Vec<u16>,
    /// The most special rule decides: distribution and port, then port, then distribution, then neither.
    pub rules: Vec<PortRule>,
    /// Who may connect when the relay listens beyond loopback; what no rule matches is refused.
    pub firewall: Vec<firewall::Rule>,
    /// The VM's address, when the host's own processes reach the guest without the relay.
    pub direct: Option<IpAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            forwarding: true,
            listen: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            ignored_ports: Vec::new(),
            rules: Vec::new(),
            firewall: Vec::new(),
            direct: None,
        }
    }
}

/// What the guest and the host's clients together may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Listeners that are relayed; each may take two sockets and more of the host.
    pub listeners: usize,
    /// Connections that are open at one time.
    pub connections: usize,
    /// Peers that one UDP port talks to at one time.
    pub udp_peers: usize,
    /// How long a peer of a UDP port may say nothing, and hear nothing, before it is forgotten.
    pub udp_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            listeners: 4096,
            connections: 16_384,
            udp_peers: 256,
            udp_idle: Duration::from_secs(120),
        }
    }
}
