//! Other people's rules that are in the way of a bridge: what they are, and the commands that let its packets pass.

use std::{io, path::Path};

use hostel_bridge::{Obstacle, Survey};
use hostel_netlink::Routing;

use crate::programs;

/// It listens on D-Bus only; this file is there while it runs.
const FIREWALLD: &str = "/run/firewalld.pid";
/// The tables of the older interface of the kernel, for root alone; only there when somebody uses them.
const LEGACY_TABLES: &str = "/proc/net/ip_tables_names";

/// What is known by looking at this host from outside its tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signs {
    docker: bool,
    firewalld: bool,
    /// The older interface has a table that filters.
    legacy: bool,
    /// There is a program `iptables`.
    iptables: bool,
    root: bool,
}

/// Returns what somebody should do so that the bridge's packets pass. `survey` is what the tables say, where they could be
/// read. Blocks for a moment.
pub(crate) fn others(bridge: &str, survey: Option<&Survey>) -> Vec<String> {
    sentences(bridge, survey, look())
}

fn look() -> Signs {
    let links = Routing::connect()
        .and_then(|routing| routing.links())
        .unwrap_or_default();
    let legacy = match fs_err::read_to_string(LEGACY_TABLES) {
        Ok(names) => names.lines().any(|name| name == "filter"),
        // There, and not for this user.
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    Signs {
        docker: links.iter().any(|link| link.name == "docker0"),
        firewalld: Path::new(FIREWALLD).exists(),
        legacy,
        iptables: programs::find("iptables", &path).is_some(),
        root: rustix::process::geteuid().is_root(),
    }
}

fn sentences(bridge: &str, survey: Option<&Survey>, signs: Signs) -> Vec<String> {
    let sudo = if signs.root { "" } else { "sudo " };
    let docker = |what: &str| format!("{what}: {}", iptables(sudo, "iptables", bridge));
    let firewalld =
        |what: &str| format!("{what}: {sudo}firewall-cmd --zone=trusted --add-interface={bridge}");
    let Some(survey) = survey else {
        let mut advice = Vec::new();
        if signs.docker {
            advice.push(docker(
                "Docker drops forwarded packets of others. If the VM reaches nothing",
            ));
        }
        if signs.firewalld {
            advice.push(firewalld(
                "firewalld refuses what comes from interfaces it does not know. If the VM reaches nothing",
            ));
        }
        return advice;
    };
    let mut advice: Vec<String> = survey
        .obstacles
        .iter()
        .map(|found| {
            if found.docker_user {
                let program = if found.family == "ip6" { "ip6tables" } else { "iptables" };
                let what = format!(
                    "Docker's rules (`{} {}`) drop what is forwarded for the VM. This lets it pass",
                    found.family, found.table
                );
                // What writes the same table, where that program is missing.
                let commands = if signs.iptables {
                    iptables(sudo, program, bridge)
                } else {
                    insert(sudo, found, "DOCKER-USER", bridge)
                };
                format!("{what}: {commands}")
            } else if (found.family.as_str(), found.table.as_str()) == ("inet", "firewalld") {
                firewalld("firewalld refuses what comes from interfaces that are in no zone of it. This lets the VM's packets pass")
            } else {
                other(sudo, found, bridge)
            }
        })
        .collect();
    if signs.docker && signs.legacy && !survey.docker_user {
        advice.push(docker(
            "Docker's rules are of the older kind, which cannot be read here. If the VM reaches nothing",
        ));
    }
    advice
}

fn iptables(sudo: &str, program: &str, bridge: &str) -> String {
    ["-i", "-o"]
        .map(|way| format!("{sudo}{program} -I DOCKER-USER {way} {bridge} -j ACCEPT"))
        .join("; ")
}

fn insert(sudo: &str, found: &Obstacle, chain: &str, bridge: &str) -> String {
    let (family, table) = (&found.family, &found.table);
    ["iifname", "oifname"]
        .map(|way| format!("{sudo}nft insert rule {family} {table} {chain} {way} {bridge} accept"))
        .join("; ")
}

fn other(sudo: &str, found: &Obstacle, bridge: &str) -> String {
    let Obstacle {
        family,
        table,
        chain,
        ..
    } = found;
    let what = format!(
        "The chain `{}` of the table `{family} {}` stops what is forwarded for the VM.",
        chain.escape_debug(),
        table.escape_debug()
    );
    // Nothing is put into a command that a shell or `nft` could take for something else than a name.
    if [table, chain].iter().all(|name| is_plain(name)) {
        let commands = insert(sudo, found, chain, bridge);
        format!("{what} This lets it pass: {commands}")
    } else {
        format!("{what} Rules that accept `iifname {bridge}` and `oifname {bridge}` let it pass.")
    }
}

fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Signs = Signs {
        docker: false,
        firewalld: false,
        legacy: false,
        iptables: true,
        root: true,
    };

    fn found(family: &str, table: &str, chain: &str, docker_user: bool) -> Survey {
        Survey {
            obstacles: vec![Obstacle {
                family: family.into(),
                table: table.into(),
                chain: chain.into(),
                docker_user,
            }],
            docker_user,
        }
    }

    #[test]
    fn where_nothing_blocks_nothing_is_said() {
        let signs = Signs {
            docker: true,
            firewalld: true,
            ..ROOT
        };
        let said = sentences("hostel0", Some(&Survey::default()), signs);
        assert!(said.is_empty(), "{said:?}");
        assert!(sentences("hostel0", None, ROOT).is_empty());
    }

    #[test]
    fn dockers_chain_for_people_gets_the_rules() {
        for (family, signs, commands) in [
            (
                "ip",
                ROOT,
                "iptables -I DOCKER-USER -i hostel0 -j ACCEPT; iptables -I DOCKER-USER -o hostel0 -j ACCEPT",
            ),
            (
                "ip6",
                Signs {
                    root: false,
                    ..ROOT
                },
                "sudo ip6tables -I DOCKER-USER -i hostel0 -j ACCEPT; \
                 sudo ip6tables -I DOCKER-USER -o hostel0 -j ACCEPT",
            ),
            (
                "ip",
                Signs {
                    iptables: false,
                    ..ROOT
                },
                "nft insert rule ip filter DOCKER-USER iifname hostel0 accept; \
                 nft insert rule ip filter DOCKER-USER oifname hostel0 accept",
            ),
        ] {
            let survey = found(family, "filter", "FORWARD", true);
            let said = sentences("hostel0", Some(&survey), signs);
            let [said] = &said[..] else {
                panic!("{said:?}")
            };
            assert!(said.ends_with(&format!(": {commands}")), "{said}");
        }
    }

    #[test]
    fn firewalld_and_others_get_theirs() {
        let survey = found("inet", "firewalld", "filter_FORWARD", false);
        let said = sentences("hostel0", Some(&survey), ROOT);
        assert!(
            said[0].ends_with(": firewall-cmd --zone=trusted --add-interface=hostel0"),
            "{said:?}"
        );
        let survey = found("inet", "filter", "forward", false);
        let said = sentences("hostel0", Some(&survey), ROOT);
        assert!(
            said[0].ends_with(
                ": nft insert rule inet filter forward iifname hostel0 accept; \
                 nft insert rule inet filter forward oifname hostel0 accept"
            ),
            "{said:?}"
        );
        let survey = found("inet", "x; reboot", "forward", false);
        let said = sentences("hostel0", Some(&survey), ROOT);
        assert!(!said[0].contains("nft "), "{said:?}");
    }

    #[test]
    fn what_cannot_be_read_is_told_by_its_signs() {
        let signs = Signs {
            docker: true,
            firewalld: true,
            ..ROOT
        };
        let both = sentences("hostel0", None, signs);
        assert!(both[0].contains("DOCKER-USER -i hostel0"), "{both:?}");
        assert!(both[1].contains("--add-interface=hostel0"), "{both:?}");
        let legacy = Signs {
            docker: true,
            legacy: true,
            ..ROOT
        };
        let survey = Survey::default();
        let said = sentences("hostel0", Some(&survey), legacy);
        assert!(said[0].contains("DOCKER-USER -o hostel0"), "{said:?}");
        let read = Survey {
            docker_user: true,
            ..survey
        };
        assert!(sentences("hostel0", Some(&read), legacy).is_empty());
    }
}
