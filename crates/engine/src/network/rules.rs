//! The rules of the firewall and of the relay: shown, changed, kept, and put in force at once.

use std::sync::Arc;

use hostel_model::{
    ErrorCode, Failure,
    firewall::{Protocol, Rule, RuleError},
};
use hostel_proto::v1;

use crate::{
    engine::Engine,
    state::{FirewallRules, Placement, PortRule, PortRules, Transport},
};

fn bad(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::InvalidArgument, message)
}

fn port(number: u32) -> Result<u16, Failure> {
    u16::try_from(number).map_err(|_| bad(format!("{number} is no port; ports go from 1 to 65535")))
}

impl Engine {
    /// Shows the rules of the firewall, after changing them when asked to. What runs follows at once.
    pub async fn firewall(
        self: &Arc<Self>,
        request: v1::FirewallRequest,
    ) -> Result<v1::FirewallReply, Failure> {
        let changes = request.clear || !request.add.is_empty() || !request.remove.is_empty();
        if changes {
            let _turn = self.rules_turn.lock().await;
            let old = self.registry.settings().firewall.get();
            let mut rules: Vec<Rule> = if request.clear {
                Vec::new()
            } else {
                old.into()
            };
            let mut remove = request.remove;
            remove.sort_unstable();
            remove.dedup();
            for number in remove.into_iter().rev() {
                let index = (number as usize)
                    .checked_sub(1)
                    .filter(|i| *i < rules.len())
                    .ok_or_else(|| {
                        bad(format!("there is no rule {number}")).hint("hostel net firewall")
                    })?;
                rules.remove(index);
            }
            for rule in &request.add {
                rules.push(rule_of(rule)?);
            }
            let rules = FirewallRules::try_from(rules)
                .map_err(|e| Failure::from_error(ErrorCode::InvalidArgument, &e))?;
            self.blocking(move |r| {
                r.change_settings(|s| s.firewall = rules.into())
                    .map_err(|e| e.failure())
            })
            .await?;
            if let Some(live) = self.vm.network() {
                live.apply_rules().await.map_err(|error| {
                    Failure::new(
                        ErrorCode::Unsupported,
                        format!(
                            "the rules are kept, but the running network did not take them: {error}"
                        ),
                    )
                    .hint("they hold from the next start of the VM on: hostel shutdown")
                })?;
            }
        }
        let live = self.vm.network();
        let advice = match &live {
            Some(live) => live.backend().advice().await,
            None => Vec::new(),
        };
        let rules = self.registry.settings().firewall.get();
        Ok(v1::FirewallReply {
            rules: (1..).zip(rules.rules()).map(shown).collect(),
            default_action: "deny".to_owned(),
            in_force: live.as_ref().is_some_and(|l| l.settings.firewall),
            advice,
        })
    }

    /// Shows the policy of the relay, after changing it when asked to. What runs follows at once.
    pub async fn port_policy(
        self: &Arc<Self>,
        request: v1::PortPolicyRequest,
    ) -> Result<v1::PortPolicyReply, Failure> {
        if !request.set.is_empty() || !request.unset.is_empty() {
            let _turn = self.rules_turn.lock().await;
            let mut rules: Vec<PortRule> = self.registry.settings().port_rules.get().into();
            for rule in &request.unset {
                let unwanted = self.port_rule(rule, true)?;
                let before = rules.len();
                rules.retain(|r| !r.same_place(&unwanted));
                if rules.len() == before {
                    return Err(bad("there is no such rule").hint("hostel ports rules"));
                }
            }
            for rule in &request.set {
                let wanted = self.port_rule(rule, false)?;
                rules.retain(|r| !r.same_place(&wanted));
                rules.push(wanted);
            }
            let rules = PortRules::try_from(rules)
                .map_err(|e| Failure::from_error(ErrorCode::InvalidArgument, &e))?;
            self.blocking(move |r| {
                r.change_settings(|s| s.port_rules = rules.into())
                    .map_err(|e| e.failure())
            })
            .await?;
            if let Some(live) = self.vm.network() {
                live.apply_relay();
            }
        }
        let settings = match self.vm.network() {
            Some(live) => live.settings.clone(),
            None => self.network_plan().await?.settings,
        };
        let rules = self.registry.settings().port_rules.get();
        let name = |rule: &PortRule| {
            rule.distro.map(|id| {
                self.registry
                    .get(id)
                    .map_or_else(|| id.to_string(), |d| d.name.to_string())
            })
        };
        Ok(v1::PortPolicyReply {
            rules: rules
                .rules()
                .iter()
                .map(|rule| v1::PortRule {
                    distro: name(rule).unwrap_or_default(),
                    port: rule.port.into(),
                    protocol: rule.protocol.as_str().to_owned(),
                    action: match rule.action {
                        Placement::Same => "same",
                        Placement::Remap => "remap",
                        Placement::Off => "off",
                    }
                    .to_owned(),
                    host_port: rule.host_port.into(),
                })
                .collect(),
            listen: settings
                .listen
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
            forwarding: settings.forwarding,
        })
    }

    fn port_rule(&self, rule: &v1::PortRule, any_action: bool) -> Result<PortRule, Failure> {
        let distro = match rule.distro.as_str() {
            "" => None,
            // Also one that is gone: its rules must be removable.
            name => match (name.parse(), any_action) {
                (Ok(id), true) => Some(id),
                _ => Some(self.resolve(name)?.id),
            },
        };
        let protocol = match rule.protocol.as_str() {
            "" | "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            other => {
                return Err(bad(format!(
                    "`{}` is no protocol with ports; there are tcp and udp",
                    other.escape_debug()
                )));
            }
        };
        let action = match rule.action.as_str() {
            "same" => Placement::Same,
            "remap" => Placement::Remap,
            "off" => Placement::Off,
            _ if any_action => Placement::Off,
            other => {
                return Err(bad(format!("`{}` is no policy", other.escape_debug()))
                    .hint("same, remap or off"));
            }
        };
        Ok(PortRule {
            distro,
            protocol,
            port: port(rule.port)?,
            action,
            host_port: if any_action { 0 } else { port(rule.host_port)? },
        })
    }
}

/// Checks a rule from the wire.
fn rule_of(rule: &v1::FirewallRule) -> Result<Rule, Failure> {
    let wrong = |e: RuleError| Failure::from_error(ErrorCode::InvalidArgument, &e);
    let ports = match (port(rule.first_port)?, port(rule.last_port)?) {
        (0, 0) => None,
        (first, 0) => Some((first, first)),
        both => Some(both),
    };
    let parsed = Rule {
        action: rule.action.parse().map_err(wrong)?,
        protocol: match rule.protocol.as_str() {
            "" => Protocol::Any,
            text => text.parse().map_err(wrong)?,
        },
        ports,
        source: match rule.source.as_str() {
            "" | "any" => None,
            text => Some(text.parse().map_err(wrong)?),
        },
    };
    parsed.validate().map_err(wrong)?;
    Ok(parsed)
}

fn shown((number, rule): (u32, &Rule)) -> v1::FirewallRule {
    let (first_port, last_port) = rule.ports.unwrap_or_default();
    v1::FirewallRule {
        number,
        action: rule.action.to_string(),
        protocol: rule.protocol.to_string(),
        first_port: first_port.into(),
        last_port: last_port.into(),
        source: rule.source.map(|s| s.to_string()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(protocol: &str, first: u32, last: u32, source: &str) -> v1::FirewallRule {
        v1::FirewallRule {
            action: "allow".to_owned(),
            protocol: protocol.to_owned(),
            first_port: first,
            last_port: last,
            source: source.to_owned(),
            ..v1::FirewallRule::default()
        }
    }

    #[test]
    fn rules_come_back_as_they_were_given() {
        for (given, source) in [
            (wire("tcp", 22, 22, "192.0.2.0/24"), "192.0.2.0/24"),
            (wire("udp", 1000, 2000, "192.0.2.0/24"), "192.0.2.0/24"),
            (wire("any", 0, 0, ""), ""),
            (wire("icmp", 0, 0, "2001:db8::1"), "2001:db8::1"),
            (wire("tcp", 1, 65_535, "0.0.0.0/0"), "0.0.0.0/0"),
            (wire("tcp", 1, 2, "2001:db8::/32"), "2001:db8::/32"),
        ] {
            let back = shown((1, &rule_of(&given).unwrap()));
            let want = v1::FirewallRule {
                number: 1,
                source: source.to_owned(),
                ..given
            };
            assert_eq!(back, want);
        }
        let one = rule_of(&wire("tcp", 22, 0, "")).unwrap();
        assert_eq!(one.ports, Some((22, 22)));
    }

    #[test]
    fn what_is_no_rule_is_refused_by_name() {
        for (rule, word) in [
            (wire("sctp", 0, 0, ""), "sctp"),
            (wire("tcp", 70_000, 0, ""), "70000"),
            (wire("tcp", 1, 70_000, ""), "70000"),
            (wire("tcp", 0, 0, "192.0.2.1/33"), "192.0.2.1/33"),
            (wire("tcp", 0, 0, "example.org"), "example.org"),
            (
                v1::FirewallRule {
                    action: "reject".to_owned(),
                    ..wire("tcp", 0, 0, "")
                },
                "reject",
            ),
        ] {
            let failure = rule_of(&rule).unwrap_err();
            assert_eq!(failure.code, ErrorCode::InvalidArgument);
            assert!(failure.message.contains(word), "{failure}");
        }
    }
}
