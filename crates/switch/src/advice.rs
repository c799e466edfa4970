//! Other people's rules that are in the way of a bridge: what they are known by, and what to do.

use std::path::Path;

use hostel_netlink::Routing;

/// Returns what somebody should do so that the bridge's packets pass. Blocks for a moment.
pub(crate) fn others(bridge: &str) -> Vec<String> {
    let links = Routing::connect()
        .and_then(|routing| routing.links())
        .unwrap_or_default();
    let docker = links.iter().any(|link| link.name == "docker0");
    // It listens on D-Bus only; this file is there while it runs.
    let firewalld = Path::new("/run/firewalld.pid").exists();
    sentences(bridge, docker, firewalld)
}

fn sentences(bridge: &str, docker: bool, firewalld: bool) -> Vec<String> {
    let mut advice = Vec::new();
    if docker {
        advice.push(format!(
            "Docker drops forwarded packets of others. If the VM reaches nothing: iptables -I DOCKER-USER -i {bridge} -j ACCEPT; \
             iptables -I DOCKER-USER -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        ));
    }
    if firewalld {
        advice.push(format!(
            "firewalld rejects what comes from interfaces it does not know. If the VM reaches nothing: \
             firewall-cmd --zone=trusted --add-interface={bridge}"
        ));
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_firewall_has_its_advice() {
        assert!(sentences("hostel0", false, false).is_empty());
        let both = sentences("hostel0", true, true);
        assert!(both[0].contains("DOCKER-USER -i hostel0"), "{both:?}");
        assert!(both[1].contains("--add-interface=hostel0"), "{both:?}");
    }
}
