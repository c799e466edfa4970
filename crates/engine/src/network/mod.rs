//! The network of a running VM: what carries it, the ports that appear on the host, the names that are answered, and the
//! life of all that from the VM's start to its end.
//!
//! Nothing here ever stops a VM (ERR-4): what does not work is told, tried again, or done without.

mod connect;
mod dns;
mod follow;
mod guest;
mod host_names;
mod ledger;
mod live;
mod names;
mod ports;
mod reopen;
mod rooms;
mod rules;
mod settings;
mod show;

use std::{fmt, net::Ipv4Addr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use hostel_model::firewall::Rule;
use hostel_switch::{Backend, HostState, NatRecord, Verdict};
use tokio::sync::watch;

pub use self::host_names::HostNamesPlaces;
pub use self::settings::{DnsMode, Mode, NetworkSettings};
pub(crate) use self::{ledger::Ledger, live::Live, rooms::RoomPlan};

/// What carries the network of a VM, and how it is opened again when it dies.
#[derive(Debug)]
pub struct NetworkSetup {
    /// What carries it.
    pub backend: Arc<dyn Backend>,
    /// Every backend that was looked at.
    pub verdicts: Vec<Verdict>,
    /// The addresses.
    pub record: NatRecord,
    /// What the configuration said when the VM was started.
    pub settings: NetworkSettings,
    /// Where names are looked up on the host.
    pub dns: hostel_dns::Settings,
    /// The host's network as it is now.
    pub host: watch::Receiver<HostState>,
    /// Where the host's own names are.
    pub host_places: HostNamesPlaces,
    /// Opens it again.
    pub opener: Arc<dyn Opener>,
}

/// Opens the network of one VM, with the addresses it has.
pub trait Opener: fmt::Debug + Send + Sync {
    /// Opens it with these rules, with the record's IPv6 addresses or without; or says why it cannot be opened. Nothing is left
    /// behind by a failure.
    fn open(
        &self,
        firewall: Vec<Rule>,
        ipv6: bool,
    ) -> BoxFuture<'_, Result<Arc<dyn Backend>, String>>;
}

/// Waits before something that failed is tried again.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing tells when it would work"
)]
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Returns the address of the host's loopback at which the ports of a room appear: the same with 127 in front.
pub(crate) fn local_address(room: Ipv4Addr) -> Ipv4Addr {
    let [_, b, c, d] = room.octets();
    Ipv4Addr::new(127, b, c, d)
}
