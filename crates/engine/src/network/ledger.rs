//! The port ledger as the wire shows it.

use std::collections::HashSet;

use hostel_model::DistroId;
use hostel_proto::v1;
use hostel_relay::{Entry, State};
use tokio::sync::watch;

use super::{Live, show::kind_of};
use crate::engine::Engine;

/// Tells that the ledger changed, whichever VM it is about.
#[derive(Debug)]
pub(crate) struct Ledger(watch::Sender<u64>);

impl Default for Ledger {
    fn default() -> Self {
        Self(watch::channel(0).0)
    }
}

impl Ledger {
    pub(crate) fn touch(&self) {
        self.0.send_modify(|n| *n = n.wrapping_add(1));
    }
}

impl Engine {
    /// Returns the port ledger; empty when nothing runs.
    pub fn ports(&self) -> Vec<v1::Port> {
        let Some(live) = self.vm.network() else {
            return Vec::new();
        };
        let kinds = live.kinds();
        let kind = |id: DistroId| kind_of(&kinds, id);
        let entries = live.relay.entries();
        entries.into_iter().map(|e| port(e, kind)).collect()
    }

    /// Tells when the ledger changes.
    pub fn ports_changed(&self) -> watch::Receiver<u64> {
        self.ledger.0.subscribe()
    }

    /// Returns the distributions that somebody on the host is connected to; `None` in it is the VM itself.
    pub(crate) fn connected(&self) -> HashSet<Option<DistroId>> {
        self.vm
            .network()
            .map(|live| live.relay.connected())
            .unwrap_or_default()
    }
}

impl Live {
    /// Passes the relay's changes on until it is closed.
    pub(super) async fn follow_ledger(&self) {
        let mut changed = self.relay.changed();
        loop {
            match self.engine.upgrade() {
                Some(engine) => engine.ledger.touch(),
                None => return,
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

fn port(entry: Entry, kind: impl Fn(DistroId) -> &'static str) -> v1::Port {
    let network = match (entry.room, entry.distro) {
        (Some(_), Some(id)) => kind(id),
        _ => "shared",
    };
    v1::Port {
        distro: entry.distro_name,
        protocol: entry.protocol.to_string(),
        guest_address: entry
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
        guest_port: entry.port.into(),
        pid: entry.pid,
        process: entry.process,
        host_addresses: entry.host.iter().map(ToString::to_string).collect(),
        state: entry.state.to_string(),
        reason: entry.reason,
        network: network.to_owned(),
        next_step: entry.next_step,
        connections: entry.connections,
    }
}

/// Returns what `doctor` has to say about the ports.
pub(super) fn checks(ports: &[v1::Port]) -> Vec<v1::Check> {
    let waiting = State::Waiting.to_string();
    let mut checks: Vec<v1::Check> = ports
        .iter()
        .filter(|p| p.state == waiting)
        .map(|p| v1::Check {
            name: "ports".to_owned(),
            verdict: "warning".to_owned(),
            found: format!(
                "{} port {} of {} is not on the host: {}",
                p.protocol,
                p.guest_port,
                owner(p),
                p.reason
            ),
            next_step: p.next_step.clone(),
        })
        .collect();
    if checks.is_empty() {
        let shared: Vec<String> = ports
            .iter()
            .filter(|p| p.network == "shared" && !p.distro.is_empty())
            .take(16)
            .map(|p| format!("{} by {}", p.guest_port, owner(p)))
            .collect();
        let found = if shared.is_empty() {
            "no distribution holds a port of the shared address".to_owned()
        } else {
            format!(
                "held on the shared address: {}; another distribution that wants one of these needs a room of its own: hostel manage NAME --network own",
                shared.join(", ")
            )
        };
        checks.push(v1::Check {
            name: "ports".to_owned(),
            verdict: "ok".to_owned(),
            found,
            next_step: String::new(),
        });
    }
    checks
}

fn owner(port: &v1::Port) -> String {
    let who = if port.distro.is_empty() {
        "the VM".to_owned()
    } else {
        format!("`{}`", port.distro)
    };
    if port.process.is_empty() {
        return who;
    }
    format!("{who} ({}, process {})", port.process, port.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(distro: &str, number: u32, state: &str) -> v1::Port {
        v1::Port {
            distro: distro.to_owned(),
            protocol: "tcp".to_owned(),
            guest_port: number,
            process: "node".to_owned(),
            pid: 12,
            state: state.to_owned(),
            network: "shared".to_owned(),
            reason: "port 80 of the host is used by process 17 (nginx)".to_owned(),
            next_step: "stop it".to_owned(),
            ..v1::Port::default()
        }
    }

    #[test]
    fn doctor_names_who_holds_a_port_and_what_to_do() {
        let all = [port("deb", 80, "waiting"), port("", 22, "forwarded")];
        let checks = checks(&all);
        assert_eq!(checks.len(), 1);
        assert!(checks[0].found.contains("nginx") && checks[0].found.contains("`deb`"));
        assert_eq!(
            (checks[0].verdict.as_str(), checks[0].next_step.as_str()),
            ("warning", "stop it")
        );
        let fine = super::checks(&[port("deb", 3000, "forwarded")]);
        assert!(
            fine[0].found.contains("3000 by `deb` (node, process 12)")
                && fine[0].found.contains("--network own"),
            "{fine:?}"
        );
        assert_eq!(super::checks(&[])[0].verdict, "ok");
    }
}
