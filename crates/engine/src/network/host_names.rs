//! The host learns the names of the distributions, when somebody asks for it (`hostNames`).

use std::{
    ffi::OsString,
    net::IpAddr,
    path::{Path, PathBuf},
};

use hostel_dns::host_names::{
    hosts::{self, Entry},
    resolved,
};
use hostel_wslconf::HostNames;

use super::{local_address, show::bridge};
use crate::network::Live;

/// Where the host keeps its names, and how it is told others.
#[derive(Clone, Debug)]
pub struct HostNamesPlaces {
    /// `/etc/hosts`
    pub hosts: PathBuf,
    /// Where `resolvectl` is looked for, as `PATH` has it.
    pub path: OsString,
}

impl Default for HostNamesPlaces {
    fn default() -> Self {
        Self {
            hosts: "/etc/hosts".into(),
            path: "/usr/bin:/bin".into(),
        }
    }
}

impl HostNamesPlaces {
    fn resolvectl(&self) -> Option<PathBuf> {
        std::env::split_paths(&self.path)
            .filter(|d| d.is_absolute())
            .map(|d| d.join("resolvectl"))
            .find(|p| p.is_file())
    }
}

impl Live {
    /// Tells the host the names that hold now.
    pub(super) async fn tell_host_names(&self) {
        let turn = self.host_turn.lock().await;
        if !*turn {
            return;
        }
        let told = match self.settings.host_names {
            HostNames::Off => return,
            HostNames::Hosts => self.write_hosts(self.host_entries()).await,
            HostNames::Resolved => self.tell_resolved().await,
        };
        self.say(
            "host-names",
            told.err()
                .map(|why| format!("the host does not know the names of the distributions: {why}")),
        );
    }

    /// Takes them back.
    pub(super) async fn forget_host_names(&self) {
        *self.host_turn.lock().await = false;
        let taken_back = match self.settings.host_names {
            // Its entry goes with the bridge.
            HostNames::Off | HostNames::Resolved => return,
            HostNames::Hosts => self.write_hosts(Vec::new()).await,
        };
        if let Err(error) = taken_back {
            tracing::warn!(error, "names of distributions stay in the host's file");
        }
    }

    async fn tell_resolved(&self) -> Result<(), String> {
        let backend = self.backend();
        let interface = bridge(&*backend);
        if interface.is_empty() {
            return Err(format!(
                "the network `{}` has no interface on this host that systemd-resolved could ask behind; set hostNames=hosts",
                backend.name()
            ));
        }
        let Some(program) = self.host_places.resolvectl() else {
            return Err("there is no program `resolvectl`; set hostNames=hosts".to_owned());
        };
        resolved::apply(&program, &interface, self.record.gateway.into(), "hostel")
            .await
            .map_err(|e| chain(&e))
    }

    /// Returns where the host finds each distribution that has a name: at its own address where the host has a route to it.
    fn host_entries(&self) -> Vec<Entry> {
        let Some(engine) = self.engine.upgrade() else {
            return Vec::new();
        };
        let guest = self.backend().guest();
        let direct = self.backend().kind() == hostel_switch::Kind::Root;
        let all = engine.registry.list();
        let mut labels = hostel_dns::labels(all.iter().map(|d| &d.name));
        all.iter()
            .filter_map(|d| {
                let label = labels.remove(&d.name)?;
                let address = match engine.room_of(d).address {
                    Some(room) if direct => room,
                    Some(room) => local_address(room),
                    None if direct => guest.address,
                    None => std::net::Ipv4Addr::LOCALHOST,
                };
                Some(Entry {
                    address: IpAddr::V4(address),
                    names: vec![format!("{label}.hostel")],
                })
            })
            .collect()
    }

    async fn write_hosts(&self, entries: Vec<Entry>) -> Result<(), String> {
        let (path, tag) = (self.host_places.hosts.clone(), self.record.id.clone());
        let work = move || hosts::write(&path, &tag, &entries).map_err(|e| chain(&e));
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result.map(drop),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Removes what a killed daemon left in the host's file, if anything. Blocks for a moment.
pub(super) fn sweep(path: &Path, tag: &str) {
    if let Err(error) = hosts::remove(path, tag) {
        tracing::debug!(
            error = chain(&error),
            "the host's file of names was not looked at"
        );
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    hostel_model::Failure::from_error(hostel_model::ErrorCode::Unsupported, error).message
}
