//! Rules of others: which chains stop what is forwarded for the bridge. Reads, and changes nothing.
//!
//! Two packets are walked through every chain at which forwarded packets are filtered: the first of a connection from the bridge to
//! the way out, and its answer. A rule that asks for more than interfaces and the connection's state may match or not: it
//! decides nothing here. So a chain that is named does stop the packets that no such rule lets through.

use std::collections::BTreeSet;

use hostel_netlink::{
    NetlinkError,
    nft::{ChainState, Family, Hook, Interface, Nft, Policy, RuleState, Verdict},
};

use super::{fail::OrRefuse, forwarding, network::Kernel};
use crate::protocol::{MAX_NAME, MAX_OBSTACLES, Obstacle, Refusal, Survey};

/// Where people's own rules go on hosts with Docker.
const DOCKER_USER: &str = "DOCKER-USER";
/// The kernel's own limit is 16.
const DEPTH: usize = 16;
/// Chains that are read for one packet at one hook.
const CHAINS: usize = 200;

/// Looks for what stops packets of `bridge`.
pub(super) fn survey(kernel: &Kernel, bridge: &str, ipv6: bool) -> Result<Survey, Refusal> {
    let chains = kernel.nft.chains().or_refuse("cannot list the chains")?;
    let routes = kernel.routing.routes();
    let routes = routes.or_refuse("cannot list the routes")?;
    let links = kernel.routing.links();
    let links = links.or_refuse("cannot list the interfaces")?;
    let leads_out = |index| {
        let mut routes = routes.iter();
        routes.any(|r| r.index == index && r.destination.length == 0)
    };
    let uplinks: BTreeSet<String> = links
        .into_iter()
        .filter(|link| leads_out(link.index))
        .map(|link| link.name)
        .collect();
    let has_docker_user = |family| {
        let mut chains = chains.iter();
        chains.any(|c| c.family == family && c.table == "filter" && c.name == DOCKER_USER)
    };
    let mut found = Survey {
        docker_user: has_docker_user(Family::Ip),
        obstacles: Vec::new(),
    };
    for chain in &chains {
        let Some((Hook::Forward, policy)) = chain.base else {
            continue;
        };
        let seen = match chain.family {
            Family::Inet | Family::Ip => true,
            Family::Ip6 => ipv6,
            Family::Other(_) => false,
        };
        if !seen || forwarding::is_name(&chain.table) || found.obstacles.len() == MAX_OBSTACLES {
            continue;
        }
        let stopped = stops(&kernel.nft, chain, policy, bridge, &uplinks);
        if stopped.or_refuse("cannot list the rules")? {
            let name = |text: &str| text.chars().take(MAX_NAME).collect();
            found.obstacles.push(Obstacle {
                family: chain.family.to_string(),
                table: name(&chain.table),
                chain: name(&chain.name),
                docker_user: chain.table == "filter" && has_docker_user(chain.family),
            });
        }
    }
    Ok(found)
}

/// Whether a chain stops one of the two packets.
fn stops(
    nft: &Nft,
    chain: &ChainState,
    policy: Policy,
    bridge: &str,
    uplinks: &BTreeSet<String>,
) -> Result<bool, NetlinkError> {
    for answer in [false, true] {
        let mut walk = Walk {
            bridge,
            uplinks,
            answer,
            read: CHAINS,
            rules: |name: &str| nft.rules(chain.family, &chain.table, name),
        };
        let passes = match walk.chain(&chain.name, DEPTH)? {
            End::Accept => true,
            End::Drop => false,
            End::Undecided => policy == Policy::Accept,
        };
        if !passes {
            return Ok(true);
        }
    }
    Ok(false)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Accept,
    Drop,
    Undecided,
}

/// A packet on its way through a table.
struct Walk<'a, R> {
    bridge: &'a str,
    uplinks: &'a BTreeSet<String>,
    /// It comes back; else it is the first one, on its way out.
    answer: bool,
    /// How many chains may still be read.
    read: usize,
    rules: R,
}

impl<R: FnMut(&str) -> Result<Vec<RuleState>, NetlinkError>> Walk<'_, R> {
    fn chain(&mut self, name: &str, depth: usize) -> Result<End, NetlinkError> {
        if depth == 0 || self.read == 0 {
            return Ok(End::Undecided);
        }
        self.read -= 1;
        for rule in (self.rules)(name)? {
            if !self.matches(&rule) {
                continue;
            }
            let end = match rule.verdict {
                Some(Verdict::Accept) => End::Accept,
                Some(Verdict::Drop) => End::Drop,
                Some(Verdict::Return) => return Ok(End::Undecided),
                Some(Verdict::Goto(to)) => return self.chain(&to, depth - 1),
                Some(Verdict::Jump(to)) => self.chain(&to, depth - 1)?,
                // A map over the states of connections lets answers pass.
                Some(Verdict::Else) if rule.answers => End::Accept,
                Some(Verdict::Else) | None => End::Undecided,
            };
            if end != End::Undecided {
                return Ok(end);
            }
        }
        Ok(End::Undecided)
    }

    /// Whether a rule certainly is for this packet.
    fn matches(&self, rule: &RuleState) -> bool {
        let (inside, outside) = if self.answer {
            (&rule.output, &rule.input)
        } else {
            (&rule.input, &rule.output)
        };
        self.is_inside(inside)
            && self.is_outside(outside)
            && !rule.conditions
            && (self.answer || !rule.answers)
    }

    fn is_inside(&self, wanted: &Interface) -> bool {
        match wanted {
            Interface::Any => true,
            Interface::Is(name) => name == self.bridge,
            Interface::Begins(name) => self.bridge.starts_with(name),
            Interface::Else => false,
        }
    }

    fn is_outside(&self, wanted: &Interface) -> bool {
        match wanted {
            Interface::Any => true,
            Interface::Is(name) => self.uplinks.contains(name),
            Interface::Begins(name) => self.uplinks.iter().any(|u| u.starts_with(name)),
            Interface::Else => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn rule(verdict: Verdict) -> RuleState {
        RuleState {
            verdict: Some(verdict),
            ..RuleState::default()
        }
    }

    fn from(name: &str, verdict: Verdict) -> RuleState {
        RuleState {
            input: Interface::Is(name.to_owned()),
            ..rule(verdict)
        }
    }

    fn to(name: &str, verdict: Verdict) -> RuleState {
        RuleState {
            output: Interface::Is(name.to_owned()),
            ..rule(verdict)
        }
    }

    /// What becomes of the packet out, and of the answer.
    fn walk(chains: &[(&str, Vec<RuleState>)]) -> [End; 2] {
        let chains: BTreeMap<_, _> = chains.iter().cloned().collect();
        let uplinks = BTreeSet::from(["eth0".to_owned()]);
        [false, true].map(|answer| {
            let mut walk = Walk {
                bridge: "hostel0",
                uplinks: &uplinks,
                answer,
                read: CHAINS,
                rules: |name: &str| Ok(chains.get(name).cloned().unwrap_or_default()),
            };
            walk.chain("FORWARD", DEPTH).unwrap()
        })
    }

    #[test]
    fn only_rules_that_certainly_match_decide() {
        let conditional = RuleState {
            conditions: true,
            ..rule(Verdict::Accept)
        };
        let answers = RuleState {
            answers: true,
            ..rule(Verdict::Accept)
        };
        let others = vec![
            from("docker0", Verdict::Accept),
            to("docker0", Verdict::Drop),
            conditional.clone(),
        ];
        assert_eq!(
            walk(&[("FORWARD", others.clone())]),
            [End::Undecided, End::Undecided]
        );
        let then = [others, vec![answers, rule(Verdict::Drop)]].concat();
        assert_eq!(walk(&[("FORWARD", then)]), [End::Drop, End::Accept]);
        let specific = RuleState {
            output: Interface::Begins("eth".into()),
            ..from("hostel0", Verdict::Accept)
        };
        assert_eq!(
            walk(&[("FORWARD", vec![specific])]),
            [End::Accept, End::Undecided]
        );
    }

    #[test]
    fn jumps_come_back_and_gotos_do_not() {
        let user = vec![
            from("hostel0", Verdict::Accept),
            to("hostel0", Verdict::Accept),
        ];
        let head = |verdict| vec![rule(verdict), rule(Verdict::Drop)];
        for (verdict, user, ends) in [
            (Verdict::Jump("USER".into()), user, [End::Accept; 2]),
            (Verdict::Jump("USER".into()), vec![], [End::Drop; 2]),
            (
                Verdict::Jump("USER".into()),
                vec![rule(Verdict::Return), rule(Verdict::Accept)],
                [End::Drop; 2],
            ),
            (Verdict::Goto("USER".into()), vec![], [End::Undecided; 2]),
        ] {
            assert_eq!(walk(&[("FORWARD", head(verdict)), ("USER", user)]), ends);
        }
    }

    #[test]
    fn a_loop_of_chains_ends() {
        let round = vec![rule(Verdict::Jump("FORWARD".into())); 3];
        assert_eq!(walk(&[("FORWARD", round)]), [End::Undecided; 2]);
    }
}
