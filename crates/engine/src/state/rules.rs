//! Rules that are kept: of the firewall, of the relay; and how a distribution is on the network.

use std::{fmt, str::FromStr};

use hostel_model::{
    DistroId,
    firewall::{MAX_RULES, Rule},
};
use serde::{Deserialize, Serialize};

/// Why rules cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// More than [`MAX_RULES`].
    #[error("there are {0} rules, {MAX_RULES} are allowed")]
    TooMany(usize),
    /// A port on the host without a remap, or a remap of every port to one.
    #[error("rule {0}: a port on the host goes with the remap of one port")]
    HostPort(usize),
    /// Two rules for the same listeners.
    #[error("rule {0}: another rule is about the same ports already")]
    Twice(usize),
}

/// Checked rules of the firewall, in the order in which they are asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Rule>", into = "Vec<Rule>")]
pub struct FirewallRules(Vec<Rule>);

impl FirewallRules {
    /// Returns the rules.
    pub fn rules(&self) -> &[Rule] {
        &self.0
    }
}

impl TryFrom<Vec<Rule>> for FirewallRules {
    type Error = RulesError;

    fn try_from(rules: Vec<Rule>) -> Result<Self, RulesError> {
        if rules.len() > MAX_RULES {
            return Err(RulesError::TooMany(rules.len()));
        }
        Ok(Self(rules))
    }
}

impl From<FirewallRules> for Vec<Rule> {
    fn from(rules: FirewallRules) -> Self {
        rules.0
    }
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Returns the name that the wire shows.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Where a listener appears on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// At its own port.
    Same,
    /// At another port.
    Remap,
    /// Nowhere.
    Off,
}

/// One rule of the relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRule {
    /// The distribution; `None`: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distro: Option<DistroId>,
    /// The protocol.
    #[serde(default)]
    pub protocol: Transport,
    /// The port in the guest; 0: every one.
    pub port: u16,
    /// What happens.
    pub action: Placement,
    /// The port on the host, for a remap; 0: the next free one.
    #[serde(default)]
    pub host_port: u16,
}

impl PortRule {
    /// Tells whether two rules are about the same listeners.
    pub fn same_place(&self, other: &Self) -> bool {
        (self.distro, self.protocol, self.port) == (other.distro, other.protocol, other.port)
    }
}

/// Checked rules of the relay, one for each distribution, protocol and port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<PortRule>", into = "Vec<PortRule>")]
pub struct PortRules(Vec<PortRule>);

impl PortRules {
    /// Returns the rules.
    pub fn rules(&self) -> &[PortRule] {
        &self.0
    }
}

impl TryFrom<Vec<PortRule>> for PortRules {
    type Error = RulesError;

    fn try_from(rules: Vec<PortRule>) -> Result<Self, RulesError> {
        if rules.len() > MAX_RULES {
            return Err(RulesError::TooMany(rules.len()));
        }
        for (i, rule) in rules.iter().enumerate() {
            let number = i + 1;
            if rule.host_port != 0 && (rule.action != Placement::Remap || rule.port == 0) {
                return Err(RulesError::HostPort(number));
            }
            if rules[..i].iter().any(|r| r.same_place(rule)) {
                return Err(RulesError::Twice(number));
            }
        }
        Ok(Self(rules))
    }
}

impl From<PortRules> for Vec<PortRule> {
    fn from(rules: PortRules) -> Self {
        rules.0
    }
}

/// How a distribution is on the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkKind {
    /// It shares the VM's.
    #[default]
    Shared,
    /// A network namespace and an address of its own.
    Own,
    /// The same, and it reaches neither neighbours nor the host.
    Isolated,
}

impl NetworkKind {
    /// Returns the name that the wire shows.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Own => "own",
            Self::Isolated => "isolated",
        }
    }
}

impl fmt::Display for NetworkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for NetworkKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Shared, Self::Own, Self::Isolated]
            .into_iter()
            .find(|k| k.as_str() == text)
            .ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use hostel_model::firewall::Protocol;

    use super::*;
    use crate::state::{DistroFile, RegistryFile, load, store};

    fn read(text: &str) -> RegistryFile {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.json");
        fs_err::write(&path, text).unwrap();
        let file = load::<RegistryFile>(&path).unwrap().unwrap();
        // What is written again is what was there, also what nobody understands.
        store(&path, &file).unwrap();
        let (old, new): (serde_json::Value, serde_json::Value) = (
            serde_json::from_str(text).unwrap(),
            serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap(),
        );
        assert_eq!(old, new);
        file
    }

    #[test]
    fn a_file_of_the_first_release_has_no_rules_and_no_complaint() {
        let file = read(r#"{"format":1,"kernel":"6.1"}"#);
        assert!(file.problems().is_empty() && file.firewall.get().rules().is_empty());
    }

    #[test]
    fn good_rules_are_read_in_order() {
        let file = read(
            r#"{"format":1,
                "firewall":[{"action":"allow","protocol":"tcp","ports":[22,22],"source":{"address":"192.0.2.0","bits":24}},
                            {"action":"deny","protocol":"icmp"}],
                "port_rules":[{"protocol":"tcp","port":80,"action":"remap","host_port":8080},
                              {"protocol":"tcp","port":0,"action":"off","host_port":0}]}"#,
        );
        assert!(file.problems().is_empty(), "{:?}", file.problems());
        let firewall = file.firewall.get();
        assert_eq!(firewall.rules()[0].ports, Some((22, 22)));
        assert_eq!(firewall.rules()[1].protocol, Protocol::Icmp);
        let ports = file.port_rules.get();
        assert_eq!(ports.rules()[0].host_port, 8080);
        assert_eq!(ports.rules()[1].action, Placement::Off);
    }

    /// One bad rule leaves none in force: without it an allowing one behind it could let more in than was meant.
    #[test]
    fn bad_rules_leave_the_file_good_and_nothing_is_let_in() {
        let many = format!(
            "[{}]",
            vec![r#"{"action":"allow","protocol":"any"}"#; MAX_RULES + 1].join(",")
        );
        for rules in [
            "7",
            r#"{"a":1}"#,
            r#"[{"action":"allow"}]"#,
            r#"[{"action":"let","protocol":"tcp"}]"#,
            r#"[{"action":"allow","protocol":"any","more":1}]"#,
            r#"[{"action":"allow","protocol":"tcp","ports":[0,5]}]"#,
            r#"[{"action":"allow","protocol":"tcp","ports":[6,5]}]"#,
            r#"[{"action":"allow","protocol":"tcp","ports":[6,70000]}]"#,
            r#"[{"action":"allow","protocol":"icmp","ports":[6,7]}]"#,
            r#"[{"action":"allow","protocol":"any","source":{"address":"192.0.2.1","bits":33}}]"#,
            r#"[{"action":"allow","protocol":"any","source":{"address":"x","bits":3}}]"#,
            many.as_str(),
        ] {
            let file = read(&format!(
                r#"{{"format":1,"kernel":"6.1","firewall":{rules}}}"#
            ));
            assert_eq!(file.kernel.as_deref(), Some("6.1"));
            assert!(file.firewall.get().rules().is_empty(), "{rules}");
            assert_eq!(file.problems().len(), 1, "{rules}");
        }
        for rules in [
            "true",
            r#"[{"port":80,"action":"same","host_port":81}]"#,
            r#"[{"port":0,"action":"remap","host_port":81}]"#,
            r#"[{"port":80,"action":"same"},{"port":80,"action":"off"}]"#,
            r#"[{"port":-1,"action":"off"}]"#,
            r#"[{"port":80,"action":"off","distro":"nobody"}]"#,
        ] {
            let text = format!(r#"{{"format":1,"port_rules":{rules}}}"#);
            let file: RegistryFile = {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("registry.json");
                fs_err::write(&path, text).unwrap();
                load(&path).unwrap().unwrap()
            };
            assert!(file.port_rules.get().rules().is_empty(), "{rules}");
            assert_eq!(file.problems().len(), 1, "{rules}");
        }
    }

    #[test]
    fn a_distribution_with_a_bad_network_is_not_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("distro.json");
        for (network, address, want, problems) in [
            (r#""own""#, r#""172.19.133.7""#, NetworkKind::Own, 0),
            (r#""isolated""#, "null", NetworkKind::Isolated, 0),
            (r#""alone""#, r#""172.19.133""#, NetworkKind::Shared, 2),
            ("7", "[]", NetworkKind::Shared, 2),
        ] {
            let text = format!(
                r#"{{"format":1,"id":"6fe3f3a4-1b7e-4f4e-8f0e-8ad2c9c3a001","name":"deb","created_unix_ns":1,"version":2,
                     "base":"b","disk_limit":1,"network":{network},"address":{address}}}"#
            );
            fs_err::write(&path, text).unwrap();
            let file = load::<DistroFile>(&path).unwrap().unwrap();
            assert_eq!(file.network.get(), want);
            assert_eq!(file.problems().len(), problems, "{:?}", file.problems());
        }
    }

    #[test]
    fn kinds_of_networks_are_spelled_one_way() {
        for kind in [NetworkKind::Shared, NetworkKind::Own, NetworkKind::Isolated] {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert_eq!("Own".parse::<NetworkKind>(), Err(()));
    }
}
